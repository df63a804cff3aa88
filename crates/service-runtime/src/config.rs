//! Typed configuration from environment variables. Every problem is reported at
//! once, by the name of its variable and the form it takes, before a port is
//! bound.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

/// Marks a value that could not be had. What is wrong with it is on record with
/// the reader that refused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported;

/// Reads variables and remembers what is wrong with them.
#[derive(Debug, Default)]
pub struct Variables {
    values: HashMap<String, String>,
    documented: Vec<Variable>,
    problems: Vec<String>,
}

#[derive(Debug)]
struct Variable {
    name: &'static str,
    form: &'static str,
    default: Option<&'static str>,
}

impl Variables {
    /// Variables with these values.
    pub fn new(values: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { values: values.into_iter().collect(), ..Self::default() }
    }

    /// The value of a variable that has no default. `form` says what is accepted,
    /// as in "takes {form}".
    pub fn required<T: FromStr>(
        &mut self,
        name: &'static str,
        form: &'static str,
    ) -> Result<T, Reported> {
        self.read(Variable { name, form, default: None })
    }

    /// The value of a variable, or its default.
    pub fn optional<T: FromStr>(
        &mut self,
        name: &'static str,
        form: &'static str,
        default: &'static str,
    ) -> Result<T, Reported> {
        self.read(Variable { name, form, default: Some(default) })
    }

    fn read<T: FromStr>(&mut self, variable: Variable) -> Result<T, Reported> {
        let Variable { name, form, default } = variable;
        self.documented.push(variable);
        // An empty variable is an unset one, as in a shell.
        let set = self.values.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let Some(value) = set.or(default) else {
            self.problems.push(format!("{name} is not set; it takes {form}"));
            return Err(Reported);
        };
        value.parse().map_err(|_| {
            self.problems.push(format!("{name} is {value:?}; it takes {form}"));
            Reported
        })
    }

    /// The configuration, if nothing was wrong with any variable.
    pub(crate) fn accept<T>(&self, config: Result<T, Reported>) -> Result<T, Invalid> {
        match config {
            Ok(config) if self.problems.is_empty() => Ok(config),
            _ => Err(Invalid(self.problems.clone())),
        }
    }

    /// Every variable that was asked for, a paragraph each.
    pub(crate) fn describe(&self) -> String {
        self.documented.iter().fold(String::new(), |mut text, Variable { name, form, default }| {
            let default = default.map_or("required".to_owned(), |it| format!("default: {it:?}"));
            let _ = writeln!(text, "  {name}\n      {form} ({default})");
            text
        })
    }
}

/// Everything that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Invalid(Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the configuration cannot be used:")?;
        self.0.iter().try_for_each(|problem| write!(formatter, "\n  {problem}"))
    }
}

/// Whole seconds, zero or more.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub Duration);

/// Whole seconds, at least one.
#[derive(Clone, Copy, Debug)]
pub struct PositiveSeconds(pub Duration);

impl FromStr for PositiveSeconds {
    type Err = Reported;

    fn from_str(text: &str) -> Result<Self, Reported> {
        let Seconds(duration) = text.parse().map_err(|_| Reported)?;
        if duration.is_zero() { Err(Reported) } else { Ok(Self(duration)) }
    }
}

impl FromStr for Seconds {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(|seconds: u32| Self(Duration::from_secs(seconds.into())))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For people.
    Text,
}

impl FromStr for LogFormat {
    type Err = Reported;

    fn from_str(text: &str) -> Result<Self, Reported> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(Reported),
        }
    }
}

/// The configuration that every service shares.
#[derive(Clone, Debug)]
pub struct Config {
    /// `GRPC_LISTEN_ADDRESS`: where the RPCs of the service are served, over mutual
    /// TLS.
    pub grpc_listen_address: SocketAddr,
    /// `HEALTH_LISTEN_ADDRESS`: where health alone is served, in plaintext, for
    /// probes that know no mutual TLS.
    pub health_listen_address: SocketAddr,
    /// `TLS_CERTIFICATE_FILE`, `TLS_PRIVATE_KEY_FILE`, `TLS_TRUST_BUNDLE_FILE`: who
    /// this service is and whom it believes.
    pub identity: client::IdentityFiles,
    /// `TRUST_DOMAIN`: the SPIFFE trust domain that callers must belong to.
    pub trust_domain: String,
    /// `NAMESPACE`: the Kubernetes namespace that callers must belong to.
    pub namespace: String,
    /// `REFLECTION_ENABLED`: whether the contract can be asked for.
    pub reflection_enabled: bool,
    /// `DRAIN_DELAY_SECONDS`: how long to go on accepting calls after saying
    /// NOT_SERVING, so that callers can look elsewhere first.
    pub drain_delay: Duration,
    /// `DRAIN_DEADLINE_SECONDS`: how long calls that have begun may take to end
    /// after that.
    pub drain_deadline: Duration,
    /// `LOG_FORMAT`: how log lines look.
    pub log_format: LogFormat,
    /// `RUST_LOG`: what is logged.
    pub log_filter: String,
    /// Whether a standard `OTEL_*` variable asks for spans to be exported.
    pub export_spans: bool,
}

impl Config {
    pub(crate) fn parse(variables: &mut Variables) -> Result<Self, Reported> {
        const ADDRESS: &str = "an address and a port, for example 0.0.0.0:50051 or [::]:50051";
        let grpc_listen_address =
            variables.optional("GRPC_LISTEN_ADDRESS", ADDRESS, "0.0.0.0:50051");
        let health_listen_address =
            variables.optional("HEALTH_LISTEN_ADDRESS", ADDRESS, "0.0.0.0:50052");
        let certificate = variables.required::<PathBuf>(
            "TLS_CERTIFICATE_FILE",
            "the path of a PEM file with the certificate of this service and its chain",
        );
        let private_key = variables.required::<PathBuf>(
            "TLS_PRIVATE_KEY_FILE",
            "the path of a PEM file with the private key of that certificate",
        );
        let trust_bundle = variables.required::<PathBuf>(
            "TLS_TRUST_BUNDLE_FILE",
            "the path of a PEM file with the authorities that callers' certificates come from",
        );
        let trust_domain = variables.optional(
            "TRUST_DOMAIN",
            "the SPIFFE trust domain of the suite",
            "chandlery.local",
        );
        let namespace = variables.optional("NAMESPACE", "the namespace of the suite", "chandlery");
        let reflection_enabled = variables.optional("REFLECTION_ENABLED", "true or false", "false");
        let drain_delay = variables.optional(
            "DRAIN_DELAY_SECONDS",
            "how long to accept calls after saying NOT_SERVING, in whole seconds",
            "0",
        );
        let drain_deadline = variables.optional(
            "DRAIN_DEADLINE_SECONDS",
            "how long calls may take to end after that, in whole seconds",
            "20",
        );
        let log_format = variables.optional("LOG_FORMAT", "json or text", "json");
        let log_filter =
            variables.optional("RUST_LOG", "directives of tracing_subscriber's EnvFilter", "info");
        let export_spans = SpanExport::read(variables);
        Ok(Self {
            grpc_listen_address: grpc_listen_address?,
            health_listen_address: health_listen_address?,
            identity: client::IdentityFiles {
                certificate: certificate?,
                private_key: private_key?,
                trust_bundle: trust_bundle?,
            },
            trust_domain: trust_domain?,
            namespace: namespace?,
            reflection_enabled: reflection_enabled?,
            drain_delay: drain_delay.map(|Seconds(duration)| duration)?,
            drain_deadline: drain_deadline.map(|Seconds(duration)| duration)?,
            log_format: log_format?,
            log_filter: log_filter?,
            export_spans: export_spans?,
        })
    }
}

/// The standard variables that decide whether spans are exported. What else they
/// can say is read by the OpenTelemetry SDK itself.
/// <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>
struct SpanExport;

impl SpanExport {
    fn read(variables: &mut Variables) -> Result<bool, Reported> {
        // By the specification, whatever is not "true" is false.
        let disabled = variables.optional::<String>("OTEL_SDK_DISABLED", "true or false", "false");
        let exporter = variables.optional::<Exporter>(
            "OTEL_TRACES_EXPORTER",
            "otlp, none, or nothing (otlp if an endpoint is set)",
            "auto",
        );
        let endpoint = variables.optional::<Endpoint>(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "the URL of an OTLP receiver over gRPC, for example http://localhost:4317",
            "",
        );
        let traces_endpoint = variables.optional::<Endpoint>(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "the URL of an OTLP receiver of spans alone, for example http://localhost:4317",
            "",
        );
        let has_endpoint = endpoint?.is_set || traces_endpoint?.is_set;
        Ok(!disabled?.eq_ignore_ascii_case("true")
            && match exporter? {
                Exporter::Auto => has_endpoint,
                Exporter::Otlp => true,
                Exporter::None => false,
            })
    }
}

/// Where an OTLP receiver is, which the SDK reads for itself.
struct Endpoint {
    is_set: bool,
}

impl FromStr for Endpoint {
    type Err = Reported;

    fn from_str(text: &str) -> Result<Self, Reported> {
        match text.parse::<http::Uri>() {
            _ if text.is_empty() => Ok(Self { is_set: false }),
            Ok(uri) if uri.scheme_str() == Some("http") => Ok(Self { is_set: true }),
            _ => Err(Reported),
        }
    }
}

enum Exporter {
    Auto,
    Otlp,
    None,
}

impl FromStr for Exporter {
    type Err = Reported;

    fn from_str(text: &str) -> Result<Self, Reported> {
        match text {
            "auto" => Ok(Self::Auto),
            "otlp" => Ok(Self::Otlp),
            "none" => Ok(Self::None),
            _ => Err(Reported),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_at_once_by_name_and_form() {
        let mut variables = Variables::new([
            ("GRPC_LISTEN_ADDRESS".to_owned(), "here".to_owned()),
            ("TLS_CERTIFICATE_FILE".to_owned(), "a.crt".to_owned()),
            ("TLS_PRIVATE_KEY_FILE".to_owned(), "a.key".to_owned()),
            ("DRAIN_DEADLINE_SECONDS".to_owned(), "-1".to_owned()),
        ]);
        let config = Config::parse(&mut variables);
        assert_eq!(
            variables.accept(config).unwrap_err().to_string(),
            "the configuration cannot be used:\n  \
             GRPC_LISTEN_ADDRESS is \"here\"; it takes an address and a port, for example \
             0.0.0.0:50051 or [::]:50051\n  \
             TLS_TRUST_BUNDLE_FILE is not set; it takes the path of a PEM file with the \
             authorities that callers' certificates come from\n  \
             DRAIN_DEADLINE_SECONDS is \"-1\"; it takes how long calls may take to end after \
             that, in whole seconds"
        );
    }

    #[test]
    fn spans_are_exported_when_an_endpoint_or_an_exporter_is_named() {
        let exports = |values: &[(&str, &str)]| {
            let values = values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            SpanExport::read(&mut Variables::new(values)).unwrap()
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317");
        assert!(!exports(&[]));
        assert!(exports(&[endpoint]));
        assert!(exports(&[("OTEL_TRACES_EXPORTER", "otlp")]));
        assert!(!exports(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]));
        assert!(!exports(&[endpoint, ("OTEL_SDK_DISABLED", "true")]));
    }
}
