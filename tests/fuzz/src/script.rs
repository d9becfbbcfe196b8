//! A script: bytes that the engine draws, read as choices. At its end every choice is the first.

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// These choices.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether there are no more.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `limit`; 0 if there is none.
    pub fn below(&mut self, limit: usize) -> usize {
        let number = match limit {
            0 | 1 => return 0,
            2..=256 => usize::from(self.byte()),
            _ => {
                usize::from(self.byte()) << 16
                    | usize::from(self.byte()) << 8
                    | usize::from(self.byte())
            }
        };
        number % limit
    }

    /// A length: most often small.
    pub fn size(&mut self) -> usize {
        let most = 1 << self.below(8);
        1 + self.below(most)
    }

    /// The next bytes, fewer at the end.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        first
    }

    /// A few bytes.
    pub fn bytes(&mut self) -> Vec<u8> {
        (0..self.size().min(16)).map(|_| self.byte()).collect()
    }
}
