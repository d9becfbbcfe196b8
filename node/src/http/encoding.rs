//! Packed bodies: answers are packed for clients that take zstd or gzip; bodies of requests may be
//! either.
//!
//! What comes out of a packed body is bounded twice: by the limits of whoever reads it, as for any
//! body, and by how much more comes out than went in. Streams of many answers are not packed: their
//! readers need each line at once.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_compression::{tokio::bufread::ZstdDecoder, zstd::DParameter};
use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_ENCODING, CONTENT_LENGTH},
    },
    middleware::Next,
    response::Response,
};
use futures::{StreamExt, TryStreamExt};
use tokio_util::io::{ReaderStream, StreamReader};
use tower_http::{
    compression::{
        CompressionLayer,
        predicate::{DefaultPredicate, NotForContentType, Predicate},
    },
    decompression::RequestDecompressionLayer,
};

use super::Problem;

/// How much more may come out of a body than went in, once it is [`FREE_BYTES`]. JSON seldom packs
/// to less than a twentieth; gzip's best, which only bombs reach, is about a thousandth.
const MAX_RATIO: u64 = 200;

/// So much may come out of any body.
const FREE_BYTES: u64 = 16 << 20;

/// How much of what it has unpacked a reader of zstd must look back on, as the base-2 logarithm: 8 MiB,
/// which is all that HTTP allows (RFC 9659), and all that it takes of memory for one body.
const ZSTD_WINDOW_LOG: u32 = 23;

/// How many packed bytes of a body have come.
#[derive(Clone, Default)]
struct Packed(Arc<AtomicU64>);

/// Packs answers.
pub(super) fn pack() -> CompressionLayer<impl Predicate + Send + Sync + 'static> {
    let streams = NotForContentType::const_new("application/x-ndjson");
    CompressionLayer::new().compress_when(DefaultPredicate::new().and(streams))
}

/// Unpacks bodies that are gzip; between [`accept`] and [`bound`].
pub(super) fn unpack() -> RequestDecompressionLayer {
    RequestDecompressionLayer::new()
}

/// Refuses what cannot be unpacked, and counts what comes in.
pub(super) async fn accept(mut request: Request, next: Next) -> Result<Response, Problem> {
    let encoding = encoding(request.headers());
    request.headers_mut().remove(CONTENT_ENCODING);
    let zstd = match encoding.as_str() {
        "" | "identity" => return Ok(next.run(request).await),
        "gzip" => {
            let gzip = axum::http::HeaderValue::from_static("gzip");
            request.headers_mut().insert(CONTENT_ENCODING, gzip);
            false
        }
        "zstd" => true,
        other => {
            let detail =
                format!("Content-Encoding is `{other}`: send zstd, gzip, or the body as it is");
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "wrong-encoding",
                "unsupported encoding",
                detail,
            ));
        }
    };
    let packed = Packed::default();
    request.headers_mut().remove(CONTENT_LENGTH);
    request.extensions_mut().insert(packed.clone());
    let request = request.map(|body| {
        let counted = body.into_data_stream().inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                packed.0.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        });
        match zstd {
            false => Body::from_stream(counted),
            true => {
                let reader = StreamReader::new(counted.map_err(io::Error::other));
                let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG)];
                Body::from_stream(ReaderStream::new(ZstdDecoder::with_params(reader, &window)))
            }
        }
    });
    Ok(next.run(request).await)
}

/// Ends a body of which far too much comes.
pub(super) async fn bound(mut request: Request, next: Next) -> Response {
    let Some(packed) = request.extensions_mut().remove::<Packed>() else {
        return next.run(request).await;
    };
    let mut out = 0_u64;
    let request = request.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |chunk| {
            let chunk = chunk?;
            out += chunk.len() as u64;
            let most = packed.0.load(Ordering::Relaxed).saturating_mul(MAX_RATIO);
            if out > most.max(FREE_BYTES) {
                let why = "it unpacks to more than 200 times its size: send it as it is";
                return Err(axum::Error::new(why));
            }
            Ok(chunk)
        }))
    });
    next.run(request).await
}

fn encoding(headers: &HeaderMap) -> String {
    let values = headers.get_all(CONTENT_ENCODING).into_iter();
    let values: Vec<_> = values.map(|value| value.to_str().unwrap_or("?").trim()).collect();
    values.join(", ").to_ascii_lowercase()
}
