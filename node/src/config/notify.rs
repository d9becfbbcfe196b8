//! The sections `[notify.NAME]` of the configuration file: who is told what, and how.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use reqwest::Url;
use serde::Deserialize;

use super::{
    ConfigError,
    file::{MailSection, duration},
    wrong,
};
use crate::notify::{
    Kind, Level, Notifier, Pattern, TargetSettings, To, WebhookSettings, secret_bytes,
};

/// The most that may wait for one target.
const MAX_QUEUE: usize = 100_000;

/// The most tries of one notification.
const MAX_ATTEMPTS: u32 = 100;

/// The most tries a minute.
const MAX_PER_MINUTE: u32 = 60_000;

/// Keys that belong to e-mails alone.
const OF_MAIL: &str = "belongs to e-mails: give smtp too, or leave it out";

/// Keys that belong to webhooks alone.
const OF_WEBHOOK: &str = "belongs to webhooks: give url too, or leave it out";

/// One target.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NotifySection {
    url: Option<String>,
    secret_file: Option<PathBuf>,
    timeout: Option<String>,
    content_type: Option<String>,
    smtp: Option<String>,
    tls: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    from: Option<String>,
    to: Vec<String>,
    subject: Option<String>,
    template: Option<String>,
    events: Option<Vec<String>>,
    pipelines: Vec<String>,
    level: Option<String>,
    queue_age: Option<String>,
    queue: Option<usize>,
    max_attempts: Option<u32>,
    backoff: Option<String>,
    per_minute: Option<u32>,
}

/// All targets, checked; secrets are read by `secret`.
pub(super) fn targets(
    sections: &BTreeMap<String, NotifySection>,
    cluster: &str,
    secret: impl Fn(&str, &Path) -> Result<String, ConfigError>,
) -> Result<Vec<TargetSettings>, ConfigError> {
    let mut targets = Vec::with_capacity(sections.len());
    for (name, section) in sections {
        let settings = section.settings(name, cluster, &secret)?;
        Notifier::check(&settings).map_err(|reason| wrong(format!("notify.{name}"), reason))?;
        targets.push(settings);
    }
    Ok(targets)
}

impl NotifySection {
    fn settings(
        &self,
        name: &str,
        cluster: &str,
        secret: &impl Fn(&str, &Path) -> Result<String, ConfigError>,
    ) -> Result<TargetSettings, ConfigError> {
        let key = |key: &str| format!("notify.{name}.{key}");
        let plain = |one: char| one.is_ascii_alphanumeric() || "-_".contains(one);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let reason = "a name has 1 to 64 letters, digits, `-` and `_`";
            return Err(wrong(format!("notify.{name}"), reason));
        }
        let to = match (&self.url, &self.smtp) {
            (Some(url), None) => To::Webhook(self.webhook(&key, url, secret)?),
            (None, Some(server)) => self.mail(&key, server, secret)?,
            _ => {
                let reason = "give either url, for a webhook, or smtp, from and to, for e-mails";
                return Err(wrong(format!("notify.{name}"), reason));
            }
        };
        let queue_age = duration(&key("queue_age"), self.queue_age.as_deref())?;
        let read = |text: &String| text.parse::<Kind>();
        let events = self.events.as_ref().map(|kinds| kinds.iter().map(read).collect());
        let events: Option<BTreeSet<Kind>> =
            events.transpose().map_err(|reason| wrong(key("events"), reason))?;
        if events.as_ref().is_some_and(|it| it.contains(&Kind::QueueAge)) && queue_age.is_none() {
            let reason = "is missing: say for how long a queue's oldest may wait, as in \"10m\"";
            return Err(wrong(key("queue_age"), reason));
        }
        let pipelines = self.pipelines.iter().map(|text| text.parse::<Pattern>());
        let pipelines = pipelines.collect::<Result<Vec<_>, String>>();
        // Who names kinds means them, whatever their level is.
        let usual = if events.is_some() { Level::Info } else { Level::Warning };
        let level = self.level.as_deref().map(str::parse).transpose();
        let is_mail = matches!(to, To::Mail(_));
        let usual_pace = match is_mail {
            true => TargetSettings::MAILS_PER_MINUTE,
            false => TargetSettings::WEBHOOKS_PER_MINUTE,
        };
        let within = |name: &str, value: u64, most: u64| match value {
            0 => Err(wrong(key(name), "must be at least 1")),
            value if value > most => {
                Err(wrong(key(name), format!("{value} is not possible: 1 to {most} are")))
            }
            _ => Ok(()),
        };
        let queue = self.queue.unwrap_or(TargetSettings::QUEUE);
        let max_attempts = self.max_attempts.unwrap_or(TargetSettings::MAX_ATTEMPTS);
        let per_minute = self.per_minute.unwrap_or(usual_pace);
        within("queue", queue as u64, MAX_QUEUE as u64)?;
        within("max_attempts", max_attempts.into(), MAX_ATTEMPTS.into())?;
        within("per_minute", per_minute.into(), MAX_PER_MINUTE.into())?;
        let backoff = duration(&key("backoff"), self.backoff.as_deref())?;
        Ok(TargetSettings {
            name: name.to_owned(),
            to,
            events,
            pipelines: pipelines.map_err(|reason| wrong(key("pipelines"), reason))?,
            level: level.map_err(|reason| wrong(key("level"), reason))?.unwrap_or(usual),
            template: self.template.clone(),
            subject: self.subject.clone(),
            queue_age,
            queue,
            max_attempts,
            backoff: backoff.unwrap_or(TargetSettings::BACKOFF),
            per_minute,
            cluster: cluster.to_owned(),
        })
    }

    fn webhook(
        &self,
        key: &impl Fn(&str) -> String,
        url: &str,
        secret: &impl Fn(&str, &Path) -> Result<String, ConfigError>,
    ) -> Result<WebhookSettings, ConfigError> {
        let others = [
            ("tls", self.tls.is_some()),
            ("user", self.user.is_some()),
            ("password_file", self.password_file.is_some()),
            ("from", self.from.is_some()),
            ("to", !self.to.is_empty()),
            ("subject", self.subject.is_some()),
        ];
        if let Some((name, _)) = others.into_iter().find(|(_, given)| *given) {
            return Err(wrong(key(name), OF_MAIL));
        }
        // What is wrong with it is not said with it: its path may be a secret.
        let parsed = url.parse::<Url>().ok();
        let parsed = parsed.filter(|it| matches!(it.scheme(), "http" | "https") && it.has_host());
        let url = parsed.ok_or_else(|| wrong(key("url"), "is no http or https URL"))?;
        let setting = key("secret_file");
        let secret = self.secret_file.as_ref().map(|path| {
            let text = secret(&setting, path)?;
            secret_bytes(&text).map_err(|reason| wrong(setting.clone(), reason))
        });
        let content_type = match (&self.content_type, &self.template) {
            (Some(_), None) => {
                let reason = "belongs to a template: without one, the body is JSON";
                return Err(wrong(key("content_type"), reason));
            }
            (Some(text), Some(_)) if !text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) => {
                return Err(wrong(key("content_type"), "has characters that no header may have"));
            }
            (given, _) => given.clone().unwrap_or_else(|| "application/json".to_owned()),
        };
        let timeout = duration(&key("timeout"), self.timeout.as_deref())?;
        Ok(WebhookSettings {
            url,
            secret: secret.transpose()?,
            timeout: timeout.unwrap_or(WebhookSettings::TIMEOUT),
            content_type,
        })
    }

    fn mail(
        &self,
        key: &impl Fn(&str) -> String,
        server: &str,
        secret: &impl Fn(&str, &Path) -> Result<String, ConfigError>,
    ) -> Result<To, ConfigError> {
        let others = [
            ("secret_file", self.secret_file.is_some()),
            ("timeout", self.timeout.is_some()),
            ("content_type", self.content_type.is_some()),
        ];
        if let Some((name, _)) = others.into_iter().find(|(_, given)| *given) {
            return Err(wrong(key(name), OF_WEBHOOK));
        }
        let from = self.from.clone();
        let from =
            from.ok_or_else(|| wrong(key("from"), "is missing: say who e-mails are from"))?;
        if self.to.is_empty() {
            return Err(wrong(key("to"), "is empty: name addresses"));
        }
        let section = MailSection {
            server: server.to_owned(),
            tls: self.tls.clone(),
            user: self.user.clone(),
            password_file: self.password_file.clone(),
            from,
            to: self.to.clone(),
        };
        let named = |name: &str| key(if name == "server" { "smtp" } else { name });
        Ok(To::Mail(section.settings(named, secret)?))
    }
}
