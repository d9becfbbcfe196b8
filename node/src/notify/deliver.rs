//! How a notification leaves: a signed request, or an e-mail. Each call is one try.
//!
//! Webhooks are as the Standard Webhooks specification (1.0.0) has them: the headers `webhook-id`,
//! `webhook-timestamp` and `webhook-signature`, which is `v1,` and the base64 of HMAC-SHA-256 over
//! `ID.TIMESTAMP.BODY`.

use data_encoding::BASE64;
use lettre::{
    Message,
    message::{Mailbox, header::ContentType},
};
use reqwest::{Client, header::CONTENT_TYPE};

use super::{
    settings::{To, WebhookSettings},
    template::Letter,
};
use crate::{
    clock,
    results::{
        mail::MailServer,
        post::{self, Unsent},
    },
    scope,
};

/// How many may get one notification.
const MAX_RECIPIENTS: usize = 20;

/// A shorter path is no secret, and may be a word of others.
const SECRET_PATH: usize = 16;

/// One way to a receiver.
pub(super) enum Way {
    Webhook { http: Client, settings: WebhookSettings, content_type: String },
    Mail { server: MailServer, to: Vec<Mailbox>, shown: String },
}

impl Way {
    /// The way that the settings tell; `templated` is whether a template makes the body.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn new(to: &To, templated: bool) -> Result<Self, String> {
        match to {
            To::Webhook(settings) => {
                let json = "application/json".to_owned();
                let content_type = if templated { settings.content_type.clone() } else { json };
                let http = post::client(settings.timeout)?;
                // A path may be what lets one in, as with chats.
                let secret = settings.secret.as_deref().map(String::from_utf8_lossy);
                let path = Some(settings.url.path()).filter(|path| path.len() >= SECRET_PATH);
                scope::hide(secret.as_deref());
                scope::hide(path.into_iter().chain(settings.url.query()));
                scope::hide(settings.url.password());
                Ok(Self::Webhook { http, settings: settings.clone(), content_type })
            }
            To::Mail(settings) => {
                if settings.to.len() > MAX_RECIPIENTS {
                    return Err(format!(
                        "{} addresses: 1 to {MAX_RECIPIENTS} are possible",
                        settings.to.len()
                    ));
                }
                let read = |address: &String| {
                    let mailbox = address.parse::<Mailbox>();
                    mailbox.map_err(|error| format!("`{address}` is no address: {error}"))
                };
                let to = settings.to.iter().map(read).collect::<Result<Vec<_>, _>>()?;
                scope::hide(settings.login.as_ref().map(|(_, password)| password.as_str()));
                let shown = format!("mailto:{}", settings.to.join(","));
                Ok(Self::Mail { server: MailServer::new(settings)?, to, shown })
            }
        }
    }

    /// Where it leads, for people.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Webhook { settings, .. } => settings.shown(),
            Self::Mail { shown, .. } => shown.clone(),
        }
    }

    /// Tries once; what the receiver said of it.
    pub(super) async fn send(&self, letter: &Letter) -> Result<String, Unsent> {
        match self {
            Self::Webhook { http, settings, content_type } => {
                let now = (clock::unix_ms() / 1000).to_string();
                let mut request = http
                    .post(settings.url.clone())
                    .header(CONTENT_TYPE, content_type)
                    .header("webhook-id", &letter.id)
                    .header("webhook-timestamp", &now);
                if let Some(secret) = &settings.secret {
                    let signed = signature(secret, &letter.id, &now, letter.body.as_bytes());
                    request = request.header("webhook-signature", signed);
                }
                let shown = settings.shown();
                let answer = request.body(letter.body.clone()).send().await;
                let status = post::judged(&shown, answer)?;
                Ok(format!("{shown} answers {status}"))
            }
            Self::Mail { server, to, shown } => {
                let mut message = Message::builder()
                    .from(server.from.clone())
                    .subject(letter.subject.clone())
                    // The same for each try: mail programs show a repetition once.
                    .message_id(Some(format!("<{}@carbonmesh>", letter.id)))
                    .header(ContentType::TEXT_PLAIN);
                for one in to {
                    message = message.to(one.clone());
                }
                let body = letter.body.replace("\r\n", "\n").replace('\n', "\r\n");
                let message = message.body(body);
                let message = message.map_err(|error| Unsent::Never(error.to_string()))?;
                server.send(message).await?;
                Ok(format!("the mail server took it for {shown}"))
            }
        }
    }
}

/// `v1,` and the base64 of HMAC-SHA-256 over `ID.TIMESTAMP.BODY`.
pub(super) fn signature(secret: &[u8], id: &str, timestamp: &str, body: &[u8]) -> String {
    let mac = post::mac(secret, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
    format!("v1,{}", BASE64.encode(&mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_specification() {
        // printf '%s' 'msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}' | openssl dgst
        // -sha256 -mac HMAC -macopt hexkey:$(base64 -d <<<MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw | xxd -p)
        let secret = super::super::settings::secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signed = signature(
            &secret.unwrap(),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
