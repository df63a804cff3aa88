//! The command line of the suite, and what it is made of, for tests to use as well.
//!
//! | module | what it holds |
//! |---|---|
//! | [`certs`] | a development authority and its certificates |
//! | [`service`] | the services as hidden subcommands |
//! | [`suite`] | the services as processes, to be killed and restarted |
//! | [`clients`] | typed clients of all RPCs |
//! | [`load`] | buys, concurrently and stubbornly |
//! | [`check`] | what must hold, of what is on record |
//! | [`demo`] | the story that tells of all of it |
//! | [`dev`] | the suite kept running, for whoever works on it or calls it |
//! | [`call`] | any RPC, with JSON in and out |
//! | [`channel`] | what a channel makes of a target |

pub mod call;
mod caller;
pub mod certs;
pub mod channel;
pub mod check;
mod cli;
pub mod clients;
mod completions;
pub mod demo;
pub mod dev;
pub mod load;
pub mod service;
pub mod suite;
mod terminal;

pub use cli::main;
