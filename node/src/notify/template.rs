//! What a target is sent: a template that was tried before the node started, or the usual text.

use minijinja::{Environment, UndefinedBehavior, value::Serde};

use super::{Notice, To, settings::TargetSettings};

/// The usual text of an e-mail.
const MAIL: &str = "\
{{ summary }}

{% if error %}error:     {{ error }}
{% endif %}{% if pipeline %}pipeline:  {{ pipeline }}
{% endif %}{% if job %}job:       {{ job }}
{% endif %}{% if phase %}phase:     {{ phase }}
{% endif %}{% if attempt %}attempt:   {{ attempt }}
{% endif %}{% if node %}node:      {{ node.name or node.id }}
{% endif %}{% if depth %}waiting:   {{ depth }}
{% endif %}level:     {{ level }}
cluster:   {{ cluster }}
at:        {{ at }}
id:        {{ id }}
";

/// The usual subject.
const SUBJECT: &str = "[{{ cluster }}] {{ level }}: {{ summary }}";

/// The most characters of a subject.
const SUBJECT_CHARS: usize = 200;

/// Writes a target's notifications.
pub(super) struct Writer {
    environment: Environment<'static>,
    /// Whether there is a template for the body; a webhook has JSON without one.
    has_body: bool,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) id: String,
    pub(super) subject: String,
    pub(super) body: String,
}

impl Writer {
    /// Reads the templates, and tries them on one notification of each kind.
    ///
    /// # Errors
    /// The key that has the template, and what is wrong with it.
    pub(super) fn new(settings: &TargetSettings) -> Result<Self, (&'static str, String)> {
        let mut environment = Environment::new();
        // A name that is not there is a slip of whoever wrote the template.
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let body = match (&settings.template, &settings.to) {
            (Some(template), _) => Some(template.clone()),
            (None, To::Mail(_)) => Some(MAIL.to_owned()),
            (None, To::Webhook(_)) => None,
        };
        let has_body = body.is_some();
        let subject = settings.subject.clone().unwrap_or_else(|| SUBJECT.to_owned());
        let templates = [("template", body), ("subject", Some(subject))];
        for (key, source) in templates {
            let Some(source) = source else { continue };
            environment.add_template_owned(key, source).map_err(|error| (key, told(&error)))?;
        }
        let writer = Self { environment, has_body };
        for sample in Notice::samples() {
            writer.write(&sample)?;
        }
        Ok(writer)
    }

    /// A notification as it is sent.
    ///
    /// # Errors
    /// As for [`new`](Self::new): a template may fail on what a value happens to be.
    pub(super) fn write(&self, notice: &Notice) -> Result<Letter, (&'static str, String)> {
        let rendered = |key: &'static str| {
            let template = self.environment.get_template(key);
            let text = template.and_then(|template| template.render(Serde(notice)));
            text.map_err(|error| (key, told(&error)))
        };
        let body = if self.has_body { rendered("template")? } else { notice.payload() };
        // What came from elsewhere must not begin another header.
        let subject = rendered("subject")?;
        let subject = subject.chars().map(|one| if one.is_control() { ' ' } else { one });
        let subject = subject.take(SUBJECT_CHARS).collect();
        Ok(Letter { id: notice.id.clone(), subject, body })
    }
}

/// What is wrong, and in which line.
fn told(error: &minijinja::Error) -> String {
    let line = error.line().map_or_else(String::new, |line| format!("line {line}: "));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    format!("{line}{}{detail}", error.kind())
}
