//! What a shell needs to know to complete the command line.

use clap::{Arg, Command};
use clap_complete::{Shell, generate};

/// Prints a script that completes the command line, names of RPCs included
///
/// bash: source <(chandlery completions bash)
/// zsh: chandlery completions zsh > "${fpath[1]}/_chandlery"
/// fish: chandlery completions fish > ~/.config/fish/completions/chandlery.fish
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// The script.
pub(crate) fn script(args: Args, command: &Command) -> Vec<u8> {
    let Args { shell } = args;
    // The services are there for `chandlery dev`, and nobody types them.
    let visible = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    let mut command =
        Command::new("chandlery").version(env!("CARGO_PKG_VERSION")).subcommands(visible.cloned());
    let mut script = Vec::new();
    generate(shell, &mut command, "chandlery", &mut script);
    if shell == Shell::Fish {
        complete_rpcs_for_fish(&command, &mut script);
    }
    script
}

/// clap_complete leaves positional arguments out for fish.
fn complete_rpcs_for_fish(command: &Command, script: &mut Vec<u8>) {
    let call = command.find_subcommand("call").into_iter();
    for rpc in call.flat_map(Command::get_positionals).flat_map(Arg::get_possible_values) {
        let summary = rpc.get_help().map(ToString::to_string).unwrap_or_default();
        let summary = summary.replace('\\', "\\\\").replace('\'', "\\'");
        let line = format!(
            "complete -c chandlery -n \"__fish_chandlery_using_subcommand call\" -f -a {} -d '{summary}'\n",
            rpc.get_name(),
        );
        script.extend(line.bytes());
    }
}
