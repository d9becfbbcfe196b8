//! Every example runs on a real node, and does what its page says.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use carbonmesh_examples::local::{NodeOptions, program};
use carbonmesh_tests::{PATIENCE, World, text};
use serde_json::{Value, json};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).canonicalize().unwrap()
}

/// A node with an example's settings, its pipeline applied.
async fn start(name: &str, options: NodeOptions) -> World {
    let folder = example(name);
    let config = fs::read_to_string(folder.join("node.toml")).unwrap();
    // The page says to start the node in the folder; here it is started elsewhere.
    let config = config
        .replace("directory = \".\"", &format!("directory = {:?}", folder.display()))
        .replace("wasm = \"", &format!("wasm = \"{}/", folder.display()));
    let mut world = World::default();
    world.cluster.start("a", NodeOptions { config, ..options }).unwrap();
    let pipeline = fs::read_to_string(folder.join("pipeline.toml")).unwrap();
    let applied = Command::new(program("carbonmesh").unwrap())
        .args(["--api", world.cluster.http("a").unwrap(), "pipeline", "apply"])
        .arg(folder.join("pipeline.toml"))
        .output()
        .unwrap();
    assert!(applied.status.success(), "{pipeline}: {}", String::from_utf8_lossy(&applied.stderr));
    world
}

async fn run(world: &World, pipeline: &str, job: &Value) -> Value {
    world.api("a").enqueue_with(pipeline, job, "?wait=60s").await.unwrap().body
}

#[tokio::test]
async fn lines_of_shell_make_a_pipeline() {
    let kept = tempfile::tempdir().unwrap();
    let env = vec![("TMPDIR".to_owned(), kept.path().display().to_string())];
    let world = start("shell", NodeOptions { env, ..NodeOptions::default() }).await;
    let done = run(&world, "backup", &json!({ "folder": example("links") })).await;
    assert_eq!(done["state"], "succeeded", "{done}");
    let archive = text(&done["result"]["kept"]);
    assert!(archive.ends_with(&format!("{}.tar.gz", text(&done["result"]["sha256"]))), "{done}");
    let listed = Command::new("tar").arg("-tzf").arg(&archive).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("./site/about.html"));

    let dead = run(&world, "backup", &json!({ "folder": "/no/such/folder" })).await;
    assert_eq!(dead["invocations"][0]["attempt_count"], 1, "{dead}");
    assert!(dead.to_string().contains("there is no folder /no/such/folder"), "{dead}");
}

#[tokio::test]
async fn a_module_says_the_checksum_of_its_instructions() {
    let folder = example("wasm");
    let made = wat::parse_file(folder.join("checksum.wat")).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(folder.join("checksum.wasm"), &made).unwrap();
    }
    let kept = fs::read(folder.join("checksum.wasm")).unwrap();
    assert!(kept == made, "checksum.wasm is not made of checksum.wat: run this with UPDATE_DOCS=1");
    let world = start("wasm", NodeOptions::default()).await;
    let done = run(&world, "checksum", &json!({ "text": "hello" })).await;
    // As zlib has it, of the instructions without white space.
    assert_eq!(done["result"]["crc32"], "89dcaa3c", "{done}");
}

#[tokio::test]
async fn a_clip_is_encoded_split_and_measured() {
    if Command::new("ffmpeg").arg("-version").output().is_err() {
        eprintln!(
            "not tried: there is no ffmpeg for examples/video; `apt-get install ffmpeg` has it"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let clip = folder.path().join("clip.mkv");
    let made =
        Command::new("sh").arg(example("video").join("clip.sh")).arg(&clip).arg("6").status();
    assert!(made.unwrap().success());
    let world = start("video", NodeOptions::default()).await;
    let done = run(&world, "video", &json!({ "clip": clip, "segment_seconds": 2 })).await;
    assert_eq!(
        (&done["state"], &done["result"]["segments"]),
        (&json!("succeeded"), &json!(3)),
        "{done}"
    );
    let seconds = done["result"]["seconds"].as_f64().unwrap();
    assert!((5.5..7.0).contains(&seconds), "{done}");
    let playlist = fs::read_to_string(text(&done["result"]["playlist"])).unwrap();
    assert_eq!(
        playlist.lines().filter(|line| line.starts_with("segment-")).count(),
        3,
        "{playlist}"
    );
    // Each segment was measured by a job of its own.
    let parent = text(&done["id"]);
    let parts = world.api("a").get(&format!("/v1/pipelines/video/jobs?of={parent}")).await.unwrap();
    assert_eq!(parts.body["jobs"].as_array().unwrap().len(), 3, "{:?}", parts.body);
}

/// A server of the example's site; it ends with the test.
struct Site {
    child: Child,
    url: String,
}

impl Site {
    fn start() -> Self {
        let script = "import functools, http.server, sys\n\
            handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])\n\
            server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)\n\
            open(sys.argv[2] + '.new', 'w').write(str(server.server_port))\n\
            import os; os.rename(sys.argv[2] + '.new', sys.argv[2])\n\
            server.serve_forever()\n";
        let folder = tempfile::tempdir().unwrap();
        let port = folder.path().join("port");
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(example("links").join("site")).arg(&port);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut site = Self { child, url: String::new() };
        let began = Instant::now();
        while !port.exists() {
            assert!(began.elapsed() < PATIENCE, "the site does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        site.url = format!("http://127.0.0.1:{}", fs::read_to_string(port).unwrap());
        site
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_page_is_downloaded_and_read_by_two_phases_at_once() {
    let site = Site::start();
    let mut world = World::default();
    let file = example("links").join("links.py").display().to_string();
    let cache = world.cluster.folder().join("cache").display().to_string();
    let options = NodeOptions {
        command: vec!["bundle".to_owned(), file],
        env: vec![("XDG_CACHE_HOME".to_owned(), cache)],
        ..NodeOptions::default()
    };
    world.cluster.start("a", options).unwrap();
    let (api, began) = (world.api("a"), Instant::now());
    while api.get("/v1/pipelines/links").await.unwrap().status != 200 {
        assert!(began.elapsed() < PATIENCE, "the pipeline is not known");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let done = run(&world, "links", &json!({ "url": format!("{}/index.html", site.url) })).await;
    let about = format!("{}/about.html", site.url);
    assert_eq!(done["result"]["links"], json!([about, "https://example.org/"]), "{done}");
    let words = text(&done["result"]["text"]);
    assert!(words.starts_with("A small site") && !words.contains("no text"), "{words}");
    assert_eq!(
        (&done["result"]["found"], &done["result"]["words"]),
        (&json!(2), &json!(19)),
        "{done}"
    );

    let dead = run(&world, "links", &json!({ "url": format!("{}/none.html", site.url) })).await;
    assert_eq!(
        (&dead["state"], &dead["invocations"][0]["attempt_count"]),
        (&json!("dead"), &json!(1))
    );
    assert!(dead.to_string().contains("404"), "{dead}");
}

#[test]
fn a_program_embeds_a_node() {
    let state = tempfile::tempdir().unwrap();
    let done = Command::new(program("embedded-node").unwrap())
        .arg(state.path())
        .args(["to be or not to be", ""])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert_eq!(lines[0], "6 words, 4 of them different");
    assert!(lines[1].ends_with("is dead: there are no words in it"), "{said}");
}
