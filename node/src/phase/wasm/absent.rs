//! What stands for modules in a program that cannot run any.

use async_trait::async_trait;

use super::{NOT_BUILT_IN, WasmSettings};
use crate::phase::{Fields, Phase, PhaseContext, PhaseError};

/// There is none.
#[derive(Debug)]
pub enum WasmPhase {}

impl WasmPhase {
    /// Refuses every module.
    ///
    /// # Errors
    /// Always.
    pub fn load(_settings: WasmSettings, _module: &[u8]) -> Result<Self, String> {
        Err(NOT_BUILT_IN.to_owned())
    }
}

#[async_trait]
impl Phase for WasmPhase {
    async fn run(&self, _context: PhaseContext) -> Result<Fields, PhaseError> {
        match *self {}
    }
}
