//! Phases with types: serde reads their instructions and writes their results.
//!
//! ```text
//! instructions ─► In ─► closure, or TypedPhase ─► Out ─► the next phase's instructions
//! ```
//! Instructions that do not fit fail for good, with the field's place: no other attempt has others.

use std::{any::Any, error::Error, fmt, marker::PhantomData, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Fields, Phase, PhaseContext, PhaseError, PhaseRegistry, Registered};

/// How many causes of an error are told.
const MAX_CAUSES: usize = 16;

/// Why a closure of [`phase_fn`] failed. `?` makes one of any error: it may be tried again, unless
/// there is a [`PhaseError`] among its causes, which then says what comes next.
///
/// It is no [`Error`] itself, which is what lets `?` take all of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(PhaseError);

impl Failure {
    /// Another attempt may do better.
    pub fn retry(why: impl fmt::Display) -> Self {
        Self(PhaseError::Retry(why.to_string()))
    }

    /// Another attempt may do better, but not before this time is over.
    pub fn retry_after(why: impl fmt::Display, after: Duration) -> Self {
        Self(PhaseError::RetryAfter(why.to_string(), after))
    }

    /// No other attempt will do better.
    pub fn fatal(why: impl fmt::Display) -> Self {
        Self(PhaseError::Fatal(why.to_string()))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        if let Some(error) = (&error as &dyn Any).downcast_ref::<PhaseError>() {
            return Self(error.clone());
        }
        let (mut text, mut said) = (error.to_string(), None);
        let mut cause = error.source();
        for _ in 0..MAX_CAUSES {
            let Some(error) = cause else { break };
            said = said.or_else(|| error.downcast_ref::<PhaseError>().cloned());
            let reason = error.to_string();
            // Many errors repeat their cause in their own text.
            if !text.ends_with(&reason) {
                text = format!("{text}: {reason}");
            }
            cause = error.source();
        }
        Self(match said {
            Some(PhaseError::Fatal(_)) => PhaseError::Fatal(text),
            Some(PhaseError::RetryAfter(_, after)) => PhaseError::RetryAfter(text, after),
            Some(PhaseError::Retry(_)) | None => PhaseError::Retry(text),
        })
    }
}

impl From<Failure> for PhaseError {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

/// Says of an error what comes next.
pub trait OrFail<T> {
    /// No other attempt will do better; `what` begins the message.
    ///
    /// # Errors
    /// There was one.
    fn or_fatal(self, what: &str) -> Result<T, Failure>;

    /// Another attempt may do better, but not before this time is over; `what` begins the message.
    ///
    /// # Errors
    /// There was one.
    fn or_retry_after(self, what: &str, after: Duration) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> OrFail<T> for Result<T, E> {
    fn or_fatal(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::fatal(format_args!("{what}: {error}")))
    }

    fn or_retry_after(self, what: &str, after: Duration) -> Result<T, Failure> {
        self.map_err(|error| Failure::retry_after(format_args!("{what}: {error}"), after))
    }
}

impl<T> OrFail<T> for Option<T> {
    fn or_fatal(self, what: &str) -> Result<T, Failure> {
        self.ok_or_else(|| Failure::fatal(what))
    }

    fn or_retry_after(self, what: &str, after: Duration) -> Result<T, Failure> {
        self.ok_or_else(|| Failure::retry_after(what, after))
    }
}

/// A phase with types, for what has state of its own or an error type of its own; for the rest
/// [`phase_fn`] is shorter.
///
/// ```
/// use carbonmesh::phase::{Context, PhaseError, PhaseRegistry, TypedPhase};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize)]
/// struct Order { customer: String, cents: u64 }
///
/// #[derive(Serialize)]
/// struct Booked { booking: String }
///
/// enum BookError { LedgerIsBusy, UnknownCustomer(String) }
///
/// impl From<BookError> for PhaseError {
///     fn from(error: BookError) -> Self {
///         match error {
///             BookError::LedgerIsBusy => PhaseError::Retry("the ledger is busy".to_owned()),
///             BookError::UnknownCustomer(who) => PhaseError::Fatal(format!("who is {who}?")),
///         }
///     }
/// }
///
/// struct Book { ledger: String }
///
/// impl TypedPhase for Book {
///     const NAME: &'static str = "book";
///     type Input = Order;
///     type Output = Booked;
///     type Error = BookError;
///
///     async fn execute(&self, context: Context, order: Order) -> Result<Booked, BookError> {
///         if order.customer.is_empty() {
///             return Err(BookError::UnknownCustomer(order.customer));
///         }
///         // The same for all attempts of this phase of this job: the ledger drops repetitions.
///         let key = context.idempotency_key();
///         Ok(Booked { booking: format!("{}/{key}/{}", self.ledger, order.cents) })
///     }
/// }
///
/// let phases = PhaseRegistry::default().with_phase(Book { ledger: "main".to_owned() }.into_phase().slots(4));
/// ```
pub trait TypedPhase: Send + Sync + Sized + 'static {
    /// By which name pipelines know it.
    const NAME: &'static str;
    /// What its instructions are read as.
    type Input: DeserializeOwned + Send;
    /// What it gives: a struct or a map, or `()` for nothing.
    type Output: Serialize + Send;
    /// Why it fails. Whether that may be tried again is said by its conversion.
    type Error: Into<PhaseError>;

    /// Runs one attempt.
    ///
    /// # Errors
    /// The attempt has failed.
    fn execute(
        &self,
        context: PhaseContext,
        input: Self::Input,
    ) -> impl Future<Output = Result<Self::Output, Self::Error>> + Send;

    /// The same for a [`PhaseRegistry`], with one slot.
    fn into_phase(self) -> NamedPhase {
        NamedPhase::new(Self::NAME, Typed(self))
    }
}

/// A phase with its name, to be given to [`PhaseRegistry::with_phase`].
#[derive(Clone)]
pub struct NamedPhase {
    name: String,
    registered: Registered,
}

impl NamedPhase {
    /// A phase with one slot. The name is checked when the node starts.
    pub fn new(name: &str, phase: impl Phase) -> Self {
        let registered = Registered { slots: 1, timeout: None, phase: Arc::new(phase) };
        Self { name: name.to_owned(), registered }
    }

    /// How many attempts of it may run at once.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.registered.slots = slots;
        self
    }

    /// How long an attempt may take, where the pipeline does not say.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.registered.timeout = Some(timeout);
        self
    }
}

impl fmt::Debug for NamedPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.registered.slots)
    }
}

impl PhaseRegistry {
    /// Adds a phase that has a name.
    #[must_use]
    pub fn with_phase(mut self, phase: NamedPhase) -> Self {
        self.phases.insert(phase.name, phase.registered);
        self
    }
}

/// Makes a phase of a closure: its instructions are read as `In`, and what it gives is merged into
/// the next phase's.
///
/// ```
/// use carbonmesh::phase::{Context, OrFail, PhaseRegistry, phase_fn};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize)]
/// struct In { path: String }
///
/// #[derive(Serialize)]
/// struct Out { bytes: u64 }
///
/// let measure = phase_fn("measure", |_: Context, input: In| async move {
///     // Any error may be tried again, unless the phase says otherwise.
///     let file = std::fs::metadata(&input.path)?;
///     file.is_file().then_some(()).or_fatal("it is no file")?;
///     Ok(Out { bytes: file.len() })
/// });
/// let phases = PhaseRegistry::default().with_phase(measure.slots(4));
/// ```
pub fn phase_fn<In, Out, F, Running>(name: &str, run: F) -> NamedPhase
where
    In: DeserializeOwned + Send + 'static,
    Out: Serialize + Send + 'static,
    F: Fn(PhaseContext, In) -> Running + Send + Sync + 'static,
    Running: Future<Output = Result<Out, Failure>> + Send + 'static,
{
    NamedPhase::new(name, Closure { run, types: PhantomData })
}

struct Closure<F, In, Out> {
    run: F,
    types: PhantomData<fn(In) -> Out>,
}

#[async_trait]
impl<In, Out, F, Running> Phase for Closure<F, In, Out>
where
    In: DeserializeOwned + Send + 'static,
    Out: Serialize + Send + 'static,
    F: Fn(PhaseContext, In) -> Running + Send + Sync + 'static,
    Running: Future<Output = Result<Out, Failure>> + Send + 'static,
{
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        let input = context.input()?;
        fields(&(self.run)(context, input).await?)
    }
}

struct Typed<P>(P);

#[async_trait]
impl<P: TypedPhase> Phase for Typed<P> {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        let input = context.input()?;
        fields(&self.0.execute(context, input).await.map_err(Into::<PhaseError>::into)?)
    }
}

impl PhaseContext {
    /// The instructions as a type.
    ///
    /// # Errors
    /// They do not fit it: fatal, with the field's place.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, PhaseError> {
        let json = self.instructions_json()?;
        let mut reader = serde_json::Deserializer::from_slice(&json);
        serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let place = match error.path().iter().next() {
                Some(_) => format!(" at `{}`", error.path()),
                None => String::new(),
            };
            // Line and column would be those of a text that nobody has seen.
            let reason = error.into_inner().to_string();
            let reason = reason.rfind(" at line ").map_or(&*reason, |end| &reason[..end]);
            PhaseError::Fatal(format!(
                "step `{}` cannot read its instructions{place}: {reason}",
                self.step()
            ))
        })
    }

    /// Gives one item, as [`give`](Self::give) does.
    ///
    /// # Errors
    /// It cannot be JSON or is too large, nobody does anything with items, or the attempt was
    /// cancelled.
    pub async fn give_item<T: Serialize>(&self, item: &T) -> Result<(), PhaseError> {
        let json = serde_json::to_vec(item)
            .map_err(|error| PhaseError::Fatal(format!("the item cannot be JSON: {error}")))?;
        self.give(&json).await
    }
}

/// What a phase gave, as the fields that it has to be.
fn fields(output: &impl Serialize) -> Result<Fields, PhaseError> {
    match serde_json::to_value(output) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(Value::Null) => Ok(Fields::new()),
        Ok(other) => {
            let kind = match other {
                Value::Array(_) => "a list",
                Value::String(_) => "a text",
                Value::Number(_) => "a number",
                _ => "a boolean",
            };
            Err(PhaseError::Fatal(format!(
                "the result is {kind}, and must be an object: give a struct, a map or ()"
            )))
        }
        Err(error) => Err(PhaseError::Fatal(format!("the result cannot be JSON: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use carbonmesh_protocol::io::Outcome;
    use serde::Deserialize;

    use super::{
        super::tests::{failed, run},
        *,
    };

    /// A phase by itself, for the test's runner.
    struct Of(NamedPhase);

    #[async_trait]
    impl Phase for Of {
        async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
            self.0.registered.phase.run(context).await
        }
    }

    // What `tests::attempt` has as instructions is {"a": 1, "b": 2}.
    #[derive(Deserialize)]
    struct In {
        a: u64,
        b: u64,
    }

    #[derive(Serialize)]
    struct Out {
        sum: u64,
    }

    #[tokio::test]
    async fn a_closure_reads_its_type_and_gives_its_type() {
        let add = phase_fn("add", |context: PhaseContext, input: In| async move {
            context.progress(0.5, "adding");
            Ok(Out { sum: input.a + input.b })
        });
        assert_eq!(format!("{:?}", add.clone().slots(3)), "add=3");
        assert_eq!(run(Of(add), None).await, Outcome::Succeeded(r#"{"sum":3}"#.into()));
        let nothing = phase_fn("nothing", |_, _: Fields| async { Ok(()) });
        assert_eq!(run(Of(nothing), None).await, Outcome::Succeeded("{}".into()));
    }

    #[tokio::test]
    async fn instructions_that_do_not_fit_name_the_field_and_are_fatal() {
        #[derive(Deserialize)]
        struct Missing {
            #[serde(rename = "path")]
            _path: String,
        }
        let missing = phase_fn("p", |_, _: Missing| async { Ok(()) });
        let (error, retry) = failed(run(Of(missing), None).await);
        assert_eq!(error, "step `step` cannot read its instructions: missing field `path`");
        assert!(!retry);

        #[derive(Deserialize)]
        struct Wrong {
            #[serde(rename = "b")]
            _b: Vec<String>,
        }
        let wrong = phase_fn("p", |_, _: Wrong| async { Ok(()) });
        let (error, retry) = failed(run(Of(wrong), None).await);
        let expected = "step `step` cannot read its instructions at `b`: invalid type: integer `2`, \
                        expected a sequence";
        assert_eq!((error.as_str(), retry), (expected, false));
    }

    #[tokio::test]
    async fn results_that_are_no_objects_are_refused() {
        let list = phase_fn("p", |_, _: Fields| async { Ok(vec![1, 2]) });
        let (error, retry) = failed(run(Of(list), None).await);
        assert!(error.contains("is a list") && !retry, "{error}");
    }

    #[tokio::test]
    async fn errors_say_what_comes_next_by_their_type() {
        let error = || io::Error::other("the disk is slow");
        let cases = [
            (Failure::from(error()), "the disk is slow", true),
            (Failure::retry("later"), "later", true),
            (Failure::fatal("never"), "never", false),
            (PhaseError::Fatal("never".to_owned()).into(), "never", false),
        ];
        for (failure, text, retry) in cases {
            let phase = phase_fn("p", move |_, _: Fields| {
                let failure = failure.clone();
                async move { Err::<(), _>(failure) }
            });
            assert_eq!(failed(run(Of(phase), None).await), (text.to_owned(), retry));
        }
        let after = Duration::from_secs(30);
        let busy = Err::<(), _>(error()).or_retry_after("writing", after).unwrap_err();
        let expected = PhaseError::RetryAfter("writing: the disk is slow".to_owned(), after);
        assert_eq!(PhaseError::from(busy), expected);
        let never = None::<()>.or_fatal("no name").unwrap_err();
        assert_eq!(PhaseError::from(never), PhaseError::Fatal("no name".to_owned()));
    }

    #[test]
    fn a_cause_that_is_fatal_makes_its_error_fatal() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot book")]
        struct Cannot(#[source] PhaseError);
        let failure = Failure::from(Cannot(PhaseError::Fatal("no account".to_owned())));
        assert_eq!(failure.0, PhaseError::Fatal("cannot book: no account".to_owned()));
    }

    #[tokio::test]
    async fn a_phase_with_state_and_errors_of_its_own() {
        struct Times(u64);
        impl TypedPhase for Times {
            const NAME: &'static str = "times";
            type Input = In;
            type Output = Out;
            type Error = PhaseError;
            async fn execute(&self, _: PhaseContext, input: In) -> Result<Out, PhaseError> {
                match self.0 {
                    0 => Err(PhaseError::Fatal("times nothing".to_owned())),
                    times => Ok(Out { sum: (input.a + input.b) * times }),
                }
            }
        }
        let outcome = run(Of(Times(5).into_phase()), None).await;
        assert_eq!(outcome, Outcome::Succeeded(r#"{"sum":15}"#.into()));
        let (error, retry) = failed(run(Of(Times(0).into_phase()), None).await);
        assert_eq!((error.as_str(), retry), ("times nothing", false));
    }
}
