//! What nodes say to each other over their connections.
use crate::{
    advert::Advert,
    codec::{Encoded, Kind},
};
use serde::{Deserialize, Serialize};
/// A message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// First on every connection.
    Hello(Advert),
}
impl Encoded for Message {
    const KIND: Kind = 0x02;
}
