//! Results by e-mail, through the mail server that the node's operator has named.

use std::time::Duration;

use async_trait::async_trait;
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{
        Mailbox,
        header::{ContentType, HeaderName, HeaderValue},
    },
    transport::smtp::{
        authentication::Credentials,
        client::{Tls, TlsParameters},
    },
};
use serde_json::Value;

use super::{Delivery, post::Unsent};
use crate::phase::{Fields, Phase, PhaseContext, PhaseError};

/// How long the server may take for one step.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The largest result that is sent by e-mail, in bytes: larger ones are for files.
const MAX_BYTES: usize = 1 << 20;

/// How many may get one result.
const MAX_RECIPIENTS: usize = 20;

/// How the connection to a mail server is kept from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MailTls {
    /// It begins in the clear, and has to change to TLS before anything is said (STARTTLS).
    #[default]
    StartTls,
    /// It is TLS from its first byte.
    Tls,
    /// It is not: for servers on the same machine.
    None,
}

/// How e-mails are sent, and to whom they may.
#[derive(Clone)]
pub struct MailSettings {
    /// The mail server's host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is kept from others.
    pub tls: MailTls,
    /// Who logs in there, if anybody has to, and with what password.
    pub login: Option<(String, String)>,
    /// From whom they come.
    pub from: String,
    /// To whom they may go: whole addresses, or all of a domain as `@example.org`.
    pub to: Vec<String>,
}

impl std::fmt::Debug for MailSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port, tls, from, to, login: _ } = self;
        let shown = (host, port, tls, from, to);
        f.debug_tuple("MailSettings").field(&shown).finish_non_exhaustive()
    }
}

/// The phase.
pub(super) struct MailWriter {
    to: Vec<String>,
    server: MailServer,
}

/// A mail server, and from whom it gets e-mails.
#[derive(Clone)]
pub(crate) struct MailServer {
    pub(crate) from: Mailbox,
    transport: AsyncSmtpTransport<Tokio1Executor>,
}

impl MailServer {
    /// The server of these settings; to whom e-mails may go is left to the caller.
    pub(crate) fn new(settings: &MailSettings) -> Result<Self, String> {
        let from = settings.from.parse::<Mailbox>();
        let from = from.map_err(|error| format!("`{}` is no address: {error}", settings.from))?;
        let parameters = || TlsParameters::new(settings.host.clone()).map_err(|e| e.to_string());
        let tls = match settings.tls {
            MailTls::StartTls => Tls::Required(parameters()?),
            MailTls::Tls => Tls::Wrapper(parameters()?),
            MailTls::None => Tls::None,
        };
        let builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&settings.host);
        let mut builder = builder.port(settings.port).tls(tls).timeout(Some(TIMEOUT));
        if let Some((user, password)) = settings.login.clone() {
            builder = builder.credentials(Credentials::new(user, password));
        }
        Ok(Self { from, transport: builder.build() })
    }

    /// Hands an e-mail over.
    pub(crate) async fn send(&self, message: Message) -> Result<(), Unsent> {
        match self.transport.send(message).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_permanent() => {
                Err(Unsent::Never(format!("the mail server refuses it: {error}")))
            }
            Err(error) => {
                Err(Unsent::Later(format!("the mail server does not take it: {error}"), None))
            }
        }
    }
}

impl MailWriter {
    pub(super) fn new(settings: &MailSettings) -> Result<Self, String> {
        let to = settings.to.iter().map(|one| one.to_ascii_lowercase()).collect();
        Ok(Self { to, server: MailServer::new(settings)? })
    }

    fn allows(&self, address: &str) -> bool {
        let address = address.to_ascii_lowercase();
        self.to.iter().any(|one| match one.starts_with('@') {
            true => address.ends_with(one.as_str()),
            false => address == *one,
        })
    }

    fn message(&self, context: &PhaseContext, delivery: &Delivery) -> Result<Message, PhaseError> {
        let fatal = |error: String| PhaseError::Fatal(error);
        let Delivery { to, result, subject } = delivery;
        let to = to.strip_prefix("mailto:").unwrap_or(to);
        let recipients: Vec<&str> =
            to.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
        if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
            let count = recipients.len();
            return Err(fatal(format!("{count} addresses: 1 to {MAX_RECIPIENTS} are possible")));
        }
        if result.len() > MAX_BYTES {
            let bytes = result.len();
            return Err(fatal(format!(
                "the result has {bytes} bytes, at most {MAX_BYTES} go into an e-mail: write it to a file"
            )));
        }
        // The same for each attempt: mail programs show a repetition once.
        let id = format!("<{}.{}@carbonmesh>", context.job(), context.step());
        let subject = match subject {
            Some(subject) => subject.chars().filter(|one| !one.is_control()).take(200).collect(),
            None => format!("{}: job {} has ended", context.pipeline(), context.job()),
        };
        let mut message = Message::builder()
            .from(self.server.from.clone())
            .subject(subject)
            .message_id(Some(id))
            .raw_header(HeaderValue::new(
                HeaderName::new_from_ascii_str("CarbonMesh-Job"),
                context.job().to_string(),
            ))
            .header(ContentType::TEXT_PLAIN);
        for address in recipients {
            let mailbox: Mailbox = address
                .parse()
                .map_err(|error| fatal(format!("`{address}` is no address: {error}")))?;
            if !self.allows(mailbox.email.as_ref()) {
                return Err(fatal(format!("{address} is not among results.mail.to of the node")));
            }
            message = message.to(mailbox);
        }
        let value: Value =
            serde_json::from_slice(result).map_err(|error| fatal(error.to_string()))?;
        let pretty = serde_json::to_string_pretty(&value).unwrap_or_default();
        let body = format!(
            "Job {} of pipeline {} has this result:\r\n\r\n{}\r\n",
            context.job(),
            context.pipeline(),
            pretty.replace('\n', "\r\n")
        );
        message.body(body).map_err(|error| fatal(error.to_string()))
    }
}

#[async_trait]
impl Phase for MailWriter {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        let delivery = Delivery::of(&context, str::to_owned)?;
        let message = self.message(&context, &delivery)?;
        match self.server.send(message).await {
            Ok(()) => {
                let to = delivery.to.strip_prefix("mailto:").unwrap_or(&delivery.to).to_owned();
                Ok(Fields::from_iter([("mailed".to_owned(), Value::String(to))]))
            }
            Err(Unsent::Never(error)) => Err(PhaseError::Fatal(error)),
            Err(Unsent::Later(error, _)) => Err(PhaseError::Retry(error)),
        }
    }
}
