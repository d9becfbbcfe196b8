//! Manifests of backups: one that can be read, or an error; none writes elsewhere than it was told.

use carbonmesh_fuzz::{Corpus, target};

use super::*;

/// A manifest's seal around other text: else nearly all would end at the sum.
fn sealed_again(input: &[u8]) -> Vec<u8> {
    let sum = HEXLOWER.encode(&Sha256::digest(input));
    [b"{\"manifest\":", input, b",\"sha256\":\"", sum.as_bytes(), b"\"}"].concat()
}

#[test]
fn manifests_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = Manifest {
        format: FORMAT_NAME.to_owned(),
        version: BACKUP_VERSION,
        data_format: FORMAT_VERSION,
        program: "1".to_owned(),
        node: "ab".repeat(16),
        name: "oak".to_owned(),
        cluster: "carbonmesh".to_owned(),
        disk: "ab".repeat(8),
        boot: 3,
        sequence: 9,
        began_at: now(),
        ended_at: now(),
        bytes: 2,
        files: vec![BackedUp {
            path: "store/CURRENT".to_owned(),
            bytes: 2,
            sha256: "ab".repeat(32),
        }],
    };
    let seed = serde_json::to_vec(&manifest).unwrap();
    let read = |text: &[u8]| {
        fs::write(folder.path().join(MANIFEST), text).unwrap();
        read_manifest(folder.path())
    };
    read(&sealed_again(&seed)).expect("the seed is read");
    let words = [
        "\"path\":",
        "\"../a\"",
        "\"/a\"",
        "\"a/../../b\"",
        "\"\"",
        "-1",
        "1e9",
        "null",
        "[",
        "]",
        "{",
        "}",
    ];
    target!(Corpus::of("manifest", vec![seed]).words(words), |input: &[u8]| {
        for text in [input.to_vec(), sealed_again(input)] {
            match read(&text) {
                Ok(manifest) => {
                    let root = Path::new("/below/this");
                    let inside = |file: &BackedUp| {
                        let path = root.join(&file.path);
                        path.starts_with(root)
                            && path != root
                            && path.components().all(|part| part != Component::ParentDir)
                    };
                    assert!(manifest.files.iter().all(inside), "{:?}", manifest.files);
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    });
}
