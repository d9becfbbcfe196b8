//! The inputs that a target starts from.

use std::{env, fs, path::PathBuf};

use crate::Script;

/// Something of this crate within the working copy that the test runs in. Tests run in their crate's
/// folder; where this crate was compiled says nothing, since clones may share what they build.
pub(crate) fn folder(name: &str) -> PathBuf {
    let here = env::current_dir().unwrap_or_default();
    let mut above = here.ancestors().map(|folder| folder.join("tests/fuzz"));
    above.find(|folder| folder.join("corpus").is_dir()).unwrap_or(here).join(name)
}

/// The most steps that one input is away from the corpus.
const STEPS: usize = 6;

/// The longest input that is made: beyond it, more bytes find nothing new.
const INPUT_BYTES: usize = 64 << 10;

/// Numbers where arithmetic goes wrong, as the codec writes them.
const NUMBERS: [&[u8]; 7] = [
    &[0],
    &[0xfa],
    &[0xfb, 0xff, 0xff],
    &[0xfc, 0xff, 0xff, 0xff, 0xff],
    &[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    &[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xfe; 17],
];

/// Inputs, and what may be put into them.
#[derive(Debug)]
pub struct Corpus {
    name: String,
    inputs: Vec<Vec<u8>>,
    tokens: Vec<Vec<u8>>,
}

impl Corpus {
    /// The inputs in `tests/fuzz/corpus/<name>`: one a file, in the order of their names.
    ///
    /// # Panics
    /// There are none, or they cannot be read: a target without a corpus would find nothing.
    pub fn load(name: &str) -> Self {
        let folder = folder("corpus").join(name);
        let read = || {
            let entries = fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.path()));
            let mut paths = entries.collect::<Result<Vec<_>, _>>()?;
            paths.sort();
            paths.iter().map(fs::read).collect::<Result<Vec<_>, _>>()
        };
        let inputs = read().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        assert!(!inputs.is_empty(), "{} has no inputs", folder.display());
        Self::of(name, inputs)
    }

    /// These inputs.
    pub fn of(name: &str, inputs: Vec<Vec<u8>>) -> Self {
        let tokens = NUMBERS.map(<[u8]>::to_vec).to_vec();
        Self { name: name.to_owned(), inputs, tokens }
    }

    /// More inputs, made by the target itself.
    #[must_use]
    pub fn and(mut self, inputs: impl IntoIterator<Item = Vec<u8>>) -> Self {
        self.inputs.extend(inputs);
        self
    }

    /// Words of the language that the target reads, instead of numbers.
    #[must_use]
    pub fn words<T: AsRef<[u8]>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.tokens = words.into_iter().map(|word| word.as_ref().to_vec()).collect();
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its inputs.
    pub fn inputs(&self) -> &[Vec<u8>] {
        &self.inputs
    }

    /// An input a few steps away from one of these.
    pub fn mutate(&self, script: &mut Script<'_>) -> Vec<u8> {
        let mut input = self.pick(script).to_vec();
        let steps = 1 + script.below(STEPS);
        // Most often few: each step makes it less likely that anything comes past the first check.
        for _ in 0..=script.below(steps) {
            self.step(&mut input, script);
            input.truncate(INPUT_BYTES);
        }
        input
    }

    fn step(&self, input: &mut Vec<u8>, script: &mut Script<'_>) {
        let at = script.below(input.len() + 1);
        let upto = (at + script.size()).min(input.len());
        match script.below(14) {
            0 | 1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << script.below(8);
                }
            }
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = script.byte();
                }
            }
            3 => drop(input.splice(at..upto, [])),
            4 => drop(input.splice(at..at, script.bytes())),
            5 => {
                let again = input[at..upto].repeat(1 + script.below(4));
                drop(input.splice(upto..upto, again));
            }
            6 => {
                let other = self.pick(script);
                let from = script.below(other.len() + 1);
                let end = (from + script.size()).min(other.len());
                drop(input.splice(at..upto, other[from..end].iter().copied()));
            }
            7 => input.truncate(at),
            // A number or a word before another, or in its place.
            kind => {
                let token = self.tokens.get(script.below(self.tokens.len())).cloned();
                let replaced = if kind == 8 { 0 } else { input.get(at).map_or(0, number_bytes) };
                let upto = (at + replaced).min(input.len());
                drop(input.splice(at..upto, token.unwrap_or_default()));
            }
        }
    }

    fn pick(&self, script: &mut Script<'_>) -> &[u8] {
        self.inputs.get(script.below(self.inputs.len())).map_or(&[], Vec::as_slice)
    }
}

/// How many bytes a number has that begins like this in the codec.
fn number_bytes(first: &u8) -> usize {
    match first {
        0xfb => 3,
        0xfc => 5,
        0xfd => 9,
        0xfe => 17,
        _ => 1,
    }
}
