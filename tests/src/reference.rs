//! The reference of the contract, `docs/reference.md`, written from the descriptors
//! that the services themselves go by, so that it cannot say anything else.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor,
    MethodDescriptor, ServiceDescriptor,
};
use proto::{Callers, Idempotency, Policies, Policy};

const INTRODUCTION: &str = "\
# Reference of the contract

<!-- Written from proto/ by `just reference`: change the contract, not this page. -->

Every RPC and every type, from the comments and policies in `proto/`. What holds for all of them (errors, pages, retries,
streams) is in [api-design.md](api-design.md).

*Callers* are workloads, by the last part of their SPIFFE ID. *For* names the roles of end users, the token of one of
whom the call must carry; the operator, `chandlery`, alone may call without. *Deadline* is how long a call may take if
its caller does not say. *Retry* tells whether a caller that got no answer may simply send the request again.";

/// The whole page, as Markdown.
pub fn markdown() -> String {
    let pool = DescriptorPool::decode(proto::DESCRIPTOR_SET).expect("the contract is sound");
    let headings = Outline::of(&pool).headings;
    let page = Page {
        anchors: anchors(&headings),
        policies: Policies::load().expect("every RPC states its policy"),
    };
    let mut blocks = vec![INTRODUCTION.to_owned(), page.contents(&headings)];
    for Heading { level, title, subject, .. } in &headings {
        blocks.push(format!("{} {title}", "#".repeat(*level)));
        blocks.extend(page.blocks(subject).into_iter().filter(|block| !block.is_empty()));
    }
    blocks.join("\n\n") + "\n"
}

/// What a heading is about.
enum Subject {
    Package(Vec<FileDescriptor>),
    Service(ServiceDescriptor),
    Rpc(MethodDescriptor),
    Message(MessageDescriptor),
    Enum(EnumDescriptor),
}

struct Heading {
    level: usize,
    title: String,
    /// The full name, which is unique where the title is not.
    name: String,
    subject: Subject,
}

/// The headings in their order: a package, its services, the RPCs of each with the
/// messages that are stated in the same file, then the types that they share.
#[derive(Default)]
struct Outline {
    headings: Vec<Heading>,
    seen: HashSet<String>,
}

impl Outline {
    fn of(pool: &DescriptorPool) -> Self {
        let mut packages = BTreeMap::<_, Vec<_>>::new();
        for file in pool.files().filter(|file| !file.package_name().starts_with("google.")) {
            packages.entry(file.package_name().to_owned()).or_default().push(file);
        }
        let mut outline = Self::default();
        for (package, mut files) in packages {
            files.sort_by(|a, b| a.name().cmp(b.name()));
            outline.push(2, &package, &package, Subject::Package(files.clone()));
            for service in files.iter().flat_map(FileDescriptor::services) {
                outline.push_service(&service);
            }
            for message in files.iter().flat_map(FileDescriptor::messages) {
                outline.push_message(3, &message);
            }
            for item in files.iter().flat_map(FileDescriptor::enums) {
                outline.push(3, item.name(), item.full_name(), Subject::Enum(item.clone()));
            }
        }
        outline
    }

    fn push(&mut self, level: usize, title: &str, name: &str, subject: Subject) {
        if self.seen.insert(name.to_owned()) {
            let (title, name) = (title.to_owned(), name.to_owned());
            self.headings.push(Heading { level, title, name, subject });
        }
    }

    fn push_service(&mut self, service: &ServiceDescriptor) {
        self.push(3, service.name(), service.full_name(), Subject::Service(service.clone()));
        for rpc in service.methods() {
            self.push(4, rpc.name(), rpc.full_name(), Subject::Rpc(rpc.clone()));
            for message in [rpc.input(), rpc.output()] {
                if message.parent_file() == service.parent_file() {
                    self.push_message(5, &message);
                }
            }
        }
    }

    fn push_message(&mut self, level: usize, message: &MessageDescriptor) {
        let name = message.full_name();
        let title = short(message.package_name(), name);
        self.push(level, title, name, Subject::Message(message.clone()));
        let below = (level + 1).min(6);
        for child in message.child_messages().filter(|child| !child.is_map_entry()) {
            self.push_message(below, &child);
        }
        for child in message.child_enums() {
            let name = child.full_name();
            self.push(below, short(child.package_name(), name), name, Subject::Enum(child.clone()));
        }
    }
}

/// A name without its package.
fn short<'a>(package: &str, name: &'a str) -> &'a str {
    name.strip_prefix(package).map_or(name, |rest| rest.trim_start_matches('.'))
}

/// Where each full name is found, by the rule that GitHub makes anchors by: letters
/// and digits of the title, and a number if another heading has the same.
fn anchors(headings: &[Heading]) -> HashMap<String, String> {
    let mut taken = HashMap::<String, usize>::new();
    headings
        .iter()
        .map(|Heading { title, name, .. }| {
            let kept = |c: &char| c.is_ascii_alphanumeric() || ['_', '-'].contains(c);
            let slug: String = title.to_ascii_lowercase().chars().filter(kept).collect();
            let count = taken.entry(slug.clone()).or_default();
            *count += 1;
            let anchor = if *count == 1 { slug } else { format!("{slug}-{}", *count - 1) };
            (name.clone(), anchor)
        })
        .collect()
}

struct Page {
    anchors: HashMap<String, String>,
    policies: Policies,
}

impl Page {
    /// For each package a line for each service, and one for its types.
    fn contents(&self, headings: &[Heading]) -> String {
        let mut lines = Vec::new();
        for package in headings.chunk_by(|_, next| !matches!(next.subject, Subject::Package(_))) {
            let mut types = Vec::new();
            for Heading { level, title, name, subject } in package {
                let link = self.link(title, name);
                match subject {
                    Subject::Package(_) => lines.push(format!("- **{link}**")),
                    Subject::Service(service) => {
                        let rpcs = service.methods();
                        let rpcs = rpcs.map(|rpc| self.link(rpc.name(), rpc.full_name()));
                        lines.push(format!("  - {link}: {}", listed(rpcs, ", ")));
                    }
                    Subject::Message(_) | Subject::Enum(_) if *level == 3 => types.push(link),
                    Subject::Rpc(_) | Subject::Message(_) | Subject::Enum(_) => {}
                }
            }
            if !types.is_empty() {
                lines.push(format!("  - Types: {}", types.join(", ")));
            }
        }
        lines.join("\n")
    }

    /// What is written below a heading.
    fn blocks(&self, subject: &Subject) -> Vec<String> {
        match subject {
            Subject::Package(files) => {
                // The path of the statement `package` in the descriptor of a file.
                files.iter().map(|file| comment(file, &[2])).collect()
            }
            Subject::Service(service) => vec![comment(&service.parent_file(), service.path())],
            Subject::Rpc(rpc) => vec![self.terms(rpc), comment(&rpc.parent_file(), rpc.path())],
            Subject::Message(message) => {
                let mut meaning = comment(&message.parent_file(), message.path());
                if says_its_place(&meaning) {
                    meaning.clear();
                }
                vec![meaning, self.fields(message)]
            }
            Subject::Enum(item) => {
                let file = item.parent_file();
                let rows = item
                    .values()
                    .map(|value| [code(value.name()), comment(&file, value.path())])
                    .collect();
                vec![comment(&file, item.path()), table(["value", "meaning"], rows)]
            }
        }
    }

    /// What goes in and out, and what the contract demands of the call.
    fn terms(&self, rpc: &MethodDescriptor) -> String {
        let kind = match (rpc.is_client_streaming(), rpc.is_server_streaming()) {
            (false, false) => "Unary",
            (false, true) => "Server stream",
            (true, false) => "Client stream",
            (true, true) => "Stream both ways",
        };
        let path = format!("/{}/{}", rpc.parent_service().full_name(), rpc.name());
        let Policy { callers, roles, default_deadline, idempotency, resumable, streaming: _ } =
            self.policies.get(&path).expect("every RPC states its policy");
        let callers = match callers {
            Callers::AnyWorkload => "any workload".to_owned(),
            Callers::Workloads(names) => listed(names.iter().map(|name| code(name)), ", "),
        };
        let roles = roles.iter().map(|role| role.as_str_name().trim_start_matches("ROLE_"));
        let roles = listed(roles.map(str::to_ascii_lowercase), " or ");
        let retry = match idempotency {
            Idempotency::NoSideEffects => "yes, it changes nothing",
            Idempotency::Idempotent => "yes, it is idempotent",
            Idempotency::Unknown => "no",
        };
        format!(
            "**{kind}{}:** {} → {}. **Callers:** {callers}.{} **Deadline:** {} s. \
             **Retry:** {retry}.",
            if *resumable { ", resumable" } else { "" },
            self.message(&rpc.input()),
            self.message(&rpc.output()),
            if roles.is_empty() { roles } else { format!(" **For:** {roles}.") },
            default_deadline.as_secs(),
        )
    }

    fn fields(&self, message: &MessageDescriptor) -> String {
        if message.fields().len() == 0 {
            return "It has no fields.".to_owned();
        }
        let file = message.parent_file();
        let mut rows = Vec::new();
        let mut choices = HashSet::new();
        for field in message.fields() {
            let choice = field.containing_oneof().filter(|choice| !choice.is_synthetic());
            if let Some(choice) = choice.filter(|choice| choices.insert(choice.name().to_owned())) {
                let fields = listed(choice.fields().map(|field| code(field.name())), ", ");
                let meaning = comment(&file, choice.path());
                rows.push([code(choice.name()), format!("one of {fields}"), meaning]);
            }
            rows.push([code(field.name()), self.kind(&field), comment(&file, field.path())]);
        }
        table(["field", "type", "meaning"], rows)
    }

    fn kind(&self, field: &FieldDescriptor) -> String {
        let kind = match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let [key, value] = [entry.map_entry_key_field(), entry.map_entry_value_field()];
                return format!("map of {} to {}", self.kind(&key), self.kind(&value));
            }
            Kind::Message(message) => self.message(&message),
            Kind::Enum(item) => {
                self.link(short(item.package_name(), item.full_name()), item.full_name())
            }
            scalar => format!("{scalar:?}").to_ascii_lowercase(),
        };
        let is_optional = field.containing_oneof().is_some_and(|choice| choice.is_synthetic());
        match (field.is_list(), is_optional) {
            (true, _) => format!("repeated {kind}"),
            (false, true) => format!("optional {kind}"),
            (false, false) => kind,
        }
    }

    fn message(&self, message: &MessageDescriptor) -> String {
        self.link(short(message.package_name(), message.full_name()), message.full_name())
    }

    /// A link to what is on this page; a name alone for what is not.
    fn link(&self, title: &str, name: &str) -> String {
        match self.anchors.get(name) {
            Some(anchor) => format!("[{title}](#{anchor})"),
            None => code(name),
        }
    }
}

fn code(name: &str) -> String {
    format!("`{name}`")
}

fn listed(items: impl Iterator<Item = String>, separator: &str) -> String {
    items.collect::<Vec<_>>().join(separator)
}

fn table<const COLUMNS: usize>(head: [&str; COLUMNS], rows: Vec<[String; COLUMNS]>) -> String {
    let head = [format!("| {} |", head.join(" | ")), "|---".repeat(COLUMNS) + "|"];
    let rows = rows.into_iter().map(|row| {
        let cells = row.map(|text| text.replace('|', "\\|").replace('\n', " "));
        format!("| {} |", cells.join(" | "))
    });
    listed(head.into_iter().chain(rows), "\n")
}

/// Whether a comment on a message says no more than its place below an RPC does.
fn says_its_place(comment: &str) -> bool {
    ["The request of ", "The answer of "].iter().any(|start| {
        let rest = comment.strip_prefix(start).and_then(|rest| rest.strip_suffix('.'));
        rest.is_some_and(|rpc| !rpc.contains(' '))
    })
}

/// The comment above the declaration at a path of a file's descriptor, as Markdown;
/// empty if there is none.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let locations = file.file_descriptor_proto().source_code_info.as_ref();
    let text = locations
        .and_then(|info| info.location.iter().find(|location| location.path == path))
        .map_or("", |location| location.leading_comments());
    let text = listed(text.lines().map(|line| line.trim().to_owned()), "\n");
    // What is not in backticks must not be taken for HTML.
    let parts = text.trim().split('`').enumerate();
    listed(
        parts.map(|(index, part)| match index % 2 {
            0 => part.replace('<', "&lt;"),
            _ => part.to_owned(),
        }),
        "`",
    )
}
