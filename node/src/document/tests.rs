//! Documents in and out, and where their errors point.

use std::time::Duration;

use serde_json::Value;

use super::*;

fn definition(json: &str) -> Result<PipelineDef, DocumentError> {
    PipelineDocument::from_json(json.as_bytes())?.definition()
}

fn refusal(json: &str) -> String {
    definition(json).expect_err(json).to_string()
}

#[test]
fn json_and_toml_say_the_same() {
    let json = r#"{"name": "p", "replicas": 2, "phases": ["a",
        {"name": "b", "phase": "work", "max_attempts": 5, "timeout": "90s",
         "backoff": {"initial": "500ms", "max": "5m"}, "after": []}]}"#;
    let toml = r#"
        name = "p"
        replicas = 2
        phases = ["a", { name = "b", phase = "work", max_attempts = 5, timeout = "90s", backoff = { initial = "500ms", max = "5m" }, after = [] }]
    "#;
    let from_json = PipelineDocument::from_text(json).expect("JSON");
    assert_eq!(from_json, PipelineDocument::from_text(toml).expect("TOML"));
    let pipeline = from_json.definition().expect("valid");
    let second = &pipeline.phases[1];
    assert_eq!((second.phase.as_str(), second.max_attempts), ("work", 5));
    assert_eq!(second.timeout, Some(Duration::from_secs(90)));
    assert_eq!(second.backoff.initial, Duration::from_millis(500));
    assert_eq!(second.after, Vec::<u16>::new());
}

#[test]
fn a_definition_reads_back_from_its_document() {
    let json = r#"{"name":"p","phases":["s",{"name":"l","timeout":"2m"},
        {"name":"r","after":["s"]},{"name":"end","after":["l","r"],"backoff":{"max":"2m"}}]}"#;
    let pipeline = definition(json).expect("valid");
    let document = PipelineDocument::from(&pipeline);
    assert_eq!(document.definition().as_ref(), Ok(&pipeline));
    let text = serde_json::to_string(&document).expect("JSON");
    assert_eq!(
        text,
        concat!(
            r#"{"name":"p","replicas":3,"preset":"available","phases":["s","#,
            r#"{"name":"l","timeout":"2m"},{"name":"r","after":["s"]},"#,
            r#"{"name":"end","after":["l","r"],"backoff":{"initial":"1s","max":"2m"}}]}"#
        )
    );
}

#[test]
fn values_are_refused_with_their_place() {
    let cases = [
        (r#"{"name":"p/q/r","phases":["a"]}"#, "name: name `p/q/r` has `/`"),
        (r#"{"name":"p","phases":["a",""]}"#, "phases[1]: a name is empty"),
        (r#"{"name":"p","phases":[{"name":"a","phase":"-"}]}"#, "phases[0].phase: "),
        (r#"{"name":"p","phases":["a",{"name":"b","after":["a","?"]}]}"#, "phases[1].after[1]: "),
        (
            r#"{"name":"p","phases":["a","b",{"name":"c","timeout":"30"}]}"#,
            "phases[2].timeout: `30` is no duration",
        ),
        (r#"{"name":"p","phases":[{"name":"c","timeout":"0s"}]}"#, "phases[0].timeout: `0s` is"),
        (
            r#"{"name":"p","phases":[{"name":"a","backoff":{"initial":"x"}}]}"#,
            "phases[0].backoff.initial: ",
        ),
        (
            r#"{"name":"p","phases":[{"name":"a","backoff":{"initial":"5m","max":"1s"}}]}"#,
            "phases[0].backoff: initial is 5m, max is 1s",
        ),
        (r#"{"name":"p","phases":["a"],"preset":"strict","accept":"any"}"#, "preset: it stands"),
        (r#"{"name":"p","phases":["a"],"replicas":0}"#, "pipeline `p`: replicas is 0"),
        (r#"{"name":"p","phases":[]}"#, "pipeline `p` has no phases"),
    ];
    for (json, start) in cases {
        let message = refusal(json);
        assert!(message.starts_with(start), "{json}\n{message}\n{start}");
    }
}

#[test]
fn unknown_keys_are_refused_with_the_known_ones_and_the_line() {
    let message =
        refusal("{\"name\":\"p\",\n\"phases\":[\"a\",{\"name\":\"b\",\"timeuot\":\"1s\"}]}");
    assert!(message.contains("unknown field `timeuot`"), "{message}");
    assert!(message.contains("`timeout`") && message.contains("line 2"), "{message}");
    let toml = PipelineDocument::from_toml("name = \"p\"\nphases = [\"a\"]\nreplica = 3\n");
    let message = toml.expect_err("a typo").to_string();
    assert!(message.contains("replica") && message.contains("line 3"), "{message}");
}

#[test]
fn broken_syntax_is_told_from_a_wrong_shape() {
    assert!(matches!(definition("{\"name\": "), Err(DocumentError::Syntax(_))));
    assert!(matches!(definition(r#"{"name":"p","phases":7}"#), Err(DocumentError::Shape(_))));
    assert!(matches!(definition(r#"{"name":"p","phases":[7]}"#), Err(DocumentError::Shape(_))));
}

/// Users copy from there: what it says has to be what is read.
#[test]
fn the_documented_pipeline_is_read_and_reads_back() {
    let text = include_str!("../../../docs/pipelines.md");
    let examples = text.split("```toml").skip(1).filter_map(|rest| rest.split("```").next());
    let mut sizes = Vec::new();
    for example in examples {
        let document = PipelineDocument::from_toml(example).expect("TOML");
        let pipeline = document.definition().expect("valid");
        sizes.push((pipeline.phases.len(), pipeline.schedules.len()));
        let back = PipelineDocument::from(&pipeline);
        assert_eq!(back.definition().as_ref(), Ok(&pipeline));
        let json = serde_json::to_string(&back).expect("JSON");
        assert_eq!(definition(&json).as_ref(), Ok(&pipeline));
        let keys: Value = serde_json::to_value(&document).expect("JSON");
        for key in keys.as_object().expect("an object").keys() {
            let described = text.contains(&format!("`{key}`"));
            assert!(described, "docs/pipelines.md does not describe `{key}`");
        }
    }
    assert_eq!(sizes, [(5, 1), (3, 0), (3, 0)]);
}

#[test]
fn what_new_keys_say_is_refused_with_the_place() {
    let with = |keys: &str| format!(r#"{{"name":"p","phases":["a"],{keys}}}"#);
    let phase = |keys: &str| format!(r#"{{"name":"p","phases":[{{"name":"a",{keys}}}]}}"#);
    let cases = [
        (with(r#""timeout":"soon""#), "timeout: `soon` is no duration"),
        (with(r#""fair_by":"tenant""#), "fair_by `tenant` is no JSON Pointer"),
        (with(r#""input_schema":[]"#), "expected a map"),
        (with(r#""partitions":0"#), "partitions is 0: allowed are"),
        (with(r#""partitions":65"#), "partitions is 65: allowed are"),
        (
            with(r#""partitions":2,"preset":"strict""#),
            "it has execute = \"majority\", which takes one coordinator",
        ),
        (
            r#"{"name":"p","partitions":2,"phases":[{"name":"a","rate":{"count":1,"per":"1s"}}]}"#
                .to_owned(),
            "it has a phase with a `rate`",
        ),
        (
            with(&format!(r#""input_schema":{{"title":"{}"}}"#, "x".repeat(65_536))),
            "input_schema in bytes",
        ),
        (with(r#""retention":{"dead":{"age":"old"}}"#), "retention.dead.age: "),
        (with(r#""schedules":[{"name":"n","cron":"61 * * * *"}]"#), "schedules[0].cron: "),
        (
            with(r#""schedules":[{"name":"n","cron":"@daily","timezone":"Here"}]"#),
            "schedules[0].timezone: `Here`",
        ),
        (phase(r#""rate":{"count":0,"per":"1s"}"#), "phases[0].rate.count is 0"),
        (phase(r#""rate":{"count":1,"per":"0s"}"#), "phases[0].rate.per: "),
        (phase(r#""limit":{"key":"k","running":1}"#), "phases[0].limit.key `k`"),
        (phase(r#""limit":{"key":"/k","running":0}"#), "phases[0].limit.running is 0"),
        (phase(r#""wait_for":"go","rate":{"count":1,"per":"1s"}"#), "it can have no rate"),
        (
            phase(r#""backoff":{"jitter_percent":101}"#),
            "phases[0].backoff.jitter in percent is 101",
        ),
    ];
    for (json, part) in cases {
        let error = refusal(&json);
        assert!(error.contains(part), "{json}: {error}");
    }
}

#[test]
fn phases_for_items_read_back_and_are_refused_with_their_place() {
    let json = r#"{"name":"p","phases":["split",
        {"name":"count","for_each":"split","timeout":"5s","combine":"list","tolerate_percent":5},
        {"name":"more","for_each":"split","after":["count"],"when":"results.split",
         "phases":["x",{"name":"y","rate":{"count":1,"per":"1s"}}]},
        {"name":"sum","after":["count","more"],"when":"results.split.ok == `true`"}]}"#;
    let pipeline = definition(json).expect("valid");
    let document = PipelineDocument::from(&pipeline);
    assert_eq!(document.definition().as_ref(), Ok(&pipeline));
    let count = pipeline.phases[1].each.as_ref().expect("for items");
    assert_eq!((count.of, count.tolerate_percent), (0, 5));
    assert_eq!(count.phases[0].timeout, Some(Duration::from_secs(5)));
    let more = pipeline.phases[2].each.as_ref().expect("for items");
    assert_eq!((more.phases.len(), &pipeline.phases[2].after[..]), (2, &[0, 1][..]));
    let cases = [
        (r#"["a",{"name":"b","for_each":"z"}]"#, "phases[1].after names `z`"),
        (r#"["a",{"name":"b","combine":"list"}]"#, "phases[1].combine: "),
        (r#"["a",{"name":"b","for_each":"a","timeout":"1s","phases":["c"]}]"#, "phases[1].timeout"),
        (r#"["a",{"name":"b","for_each":"a","phases":[]}]"#, "with each item"),
        (r#"["a",{"name":"b","for_each":"a","combine":"sum"}]"#, "unknown variant `sum`"),
        (r#"["a",{"name":"b","for_each":"a","tolerate_percent":101}]"#, "0 to 100"),
        (r#"["a",{"name":"b","when":"results.a =="}]"#, "phases[1].when is no JMESPath"),
    ];
    for (phases, expected) in cases {
        let error = refusal(&format!(r#"{{"name":"p","phases":{phases}}}"#));
        assert!(error.contains(expected), "{phases}: {error}");
    }
}

#[test]
fn what_undoes_and_maps_reads_back_and_is_refused_with_its_place() {
    let json = r#"{"name":"p","phases":[
        {"name":"end","after":["l","r"],"heartbeat_timeout":"1m"},
        {"name":"l","after":[],"compensate":"undo-l","output_mapping":"{x: x}"},
        {"name":"r","after":[],"input_mapping":"instructions",
         "compensate":{"name":"undo-r","phase":"l","max_attempts":9,"heartbeat_timeout":"5s"}},
        {"name":"each","for_each":"l","after":["end"],"compensate":"undo-each"}]}"#;
    let pipeline = definition(json).expect("valid");
    let document = PipelineDocument::from(&pipeline);
    assert_eq!(document.definition().as_ref(), Ok(&pipeline));
    let undo = pipeline.compensations.iter().map(|undo| (undo.name.as_str(), undo.undoes));
    let places: Vec<_> = undo.collect();
    assert_eq!(places, [("undo-each", Some(3)), ("undo-r", Some(1)), ("undo-l", Some(0))]);
    let cases = [
        (r#"{"name":"a","compensate":"a"}"#, "`a` is taken"),
        (r#"{"name":"a","compensate":{"name":"b","after":[]}}"#, "phases[0].compensate.after: "),
        (r#"{"name":"a","compensate":{"name":"b","when":"x"}}"#, "phases[0].compensate.when: "),
        (r#"{"name":"a","compensate":{"name":"b","max_attempts":0}}"#, "what compensates `a`: "),
        (
            r#"{"name":"a","wait_for":"go","timeout":"1h","compensate":"b"}"#,
            "phases[0].compensate: the phase waits for a signal",
        ),
        (
            r#""a",{"name":"b","for_each":"a","phases":[{"name":"c","compensate":"d"}]}"#,
            "phases[0].compensate: what is done with single items",
        ),
        (r#"{"name":"a","input":"named","input_mapping":"@"}"#, "phases[0].input_mapping is"),
        (r#"{"name":"a","output_mapping":"map(&a, b)"}"#, "phases[0].output_mapping is no"),
        (r#"{"name":"a","heartbeat_timeout":"0s"}"#, "phases[0].heartbeat_timeout: "),
        (r#"{"name":"a","wait_for":"go","heartbeat_timeout":"1s"}"#, "no heartbeat_timeout"),
    ];
    for (phases, expected) in cases {
        let error = refusal(&format!(r#"{{"name":"p","phases":[{phases}]}}"#));
        assert!(error.contains(expected), "{phases}: {error}");
    }
}

/// The schema in the documentation is that of the types; and what it says may stand somewhere, may.
#[test]
fn the_schema_is_that_of_the_parser() {
    let kept = include_str!("../../../docs/pipeline.schema.json");
    let advice = "write what `carbonmesh pipeline schema` prints to docs/pipeline.schema.json";
    assert_eq!(json_schema(), kept, "{advice}");
    let schema: Value = serde_json::from_str(kept).expect("JSON");
    let phase = &schema["$defs"]["PhaseDocument"]["properties"];
    let keys: Vec<&String> = phase.as_object().expect("an object").keys().collect();
    assert!(keys.len() >= 16, "{keys:?}");
    let value = |key: &str, one: &str| match key {
        "input" | "combine" => {
            format!(
                r#"{{"name":"p","phases":["a",{{"name":"b","for_each":"a","{key}":"{one}"}}]}}"#
            )
        }
        "accept" | "execute" => format!(r#"{{"name":"p","{key}":"{one}","phases":["a"]}}"#),
        _ => format!(
            r#"{{"name":"p","phases":["a"],"schedules":[{{"name":"s","cron":"@daily","{key}":"{one}"}}]}}"#
        ),
    };
    let of = |place: &Value, key: &str| place["properties"][key]["enum"].clone();
    for (place, key) in [
        (&schema, "accept"),
        (&schema, "execute"),
        (&schema["$defs"]["PhaseDocument"], "input"),
        (&schema["$defs"]["PhaseDocument"], "combine"),
        (&schema["$defs"]["ScheduleDocument"], "missed"),
        (&schema["$defs"]["ScheduleDocument"], "overlap"),
    ] {
        let ones = of(place, key);
        let ones = ones.as_array().unwrap_or_else(|| panic!("{key} has values"));
        assert!(!ones.is_empty());
        for one in ones {
            let document = value(key, one.as_str().expect("a text"));
            assert!(definition(&document).is_ok(), "{document}");
        }
        assert!(definition(&value(key, "nonsense")).is_err(), "{key}");
    }
}
