//! A program that has a node inside: it counts the words of texts by a typed phase, and asks itself for
//! that as any client would.
//!
//! `embedded-node FOLDER [TEXT...]` keeps the node's state in the folder, counts each text, prints what
//! comes out, and ends.

use std::{collections::BTreeMap, env, time::Duration};

use carbonmesh::{
    node::Node,
    phase::{Context, Failure, PhaseRegistry, phase_fn},
};
use carbonmesh_client::{Client, PipelineSpec};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Text {
    text: String,
}

#[derive(Serialize, Deserialize)]
struct Counted {
    words: BTreeMap<String, u64>,
    total: u64,
}

/// How long one text may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = env::args().skip(1);
    let folder = args.next().ok_or("give a folder for the node's state")?;
    let count = phase_fn("count-words", |context: Context, input: Text| async move {
        context.progress(0.0, "counting");
        count(&input.text)
    });
    let node = Node::builder(folder)
        .name("embedded")
        .http("127.0.0.1:0")
        .listen("127.0.0.1:0")
        .phases(PhaseRegistry::default().with_phase(count.slots(4)))
        .start()
        .await?;

    let client = Client::new(&format!("http://{}", node.http_address()))?;
    client.apply(&PipelineSpec::new("words").phase("count-words")).await?;
    for text in args {
        let job = client.enqueue("words", &Text { text }).wait(PATIENCE).await?;
        match job.output::<Counted>() {
            Ok(counted) => {
                println!("{} words, {} of them different", counted.total, counted.words.len())
            }
            Err(error) => println!("{error}"),
        }
    }

    node.stop().await?;
    Ok(())
}

fn count(text: &str) -> Result<Counted, Failure> {
    if text.trim().is_empty() {
        // No other attempt would find words.
        return Err(Failure::fatal("there are no words in it"));
    }
    let mut words = BTreeMap::new();
    for word in text.split_whitespace() {
        *words.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    Ok(Counted { total: words.values().sum(), words })
}
