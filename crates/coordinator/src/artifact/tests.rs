//! Pictures kept, given out, condemned and removed; and those whose file is not what it was.

use std::fs;
use std::path::Path;

use super::*;
use crate::testing::in_folder;

const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new().chain_update(bytes))
}

/// Keeps a picture of these bytes; its name.
pub(crate) async fn keep(artifacts: &Arc<Artifacts>, bytes: &[u8]) -> String {
    let name = sha256(bytes);
    let mut incoming = artifacts.begin().await.expect("a file can be made");
    incoming.write(bytes).await.expect("is written");
    incoming.finish(&name).await.expect("is what was announced");
    name
}

fn opened(folder: &Path) -> Arc<Artifacts> {
    Arc::new(Artifacts::new(in_folder(folder, "pictures")))
}

async fn read(artifacts: &Artifacts, name: &str, n_bytes: u64) -> Result<Vec<u8>, ReadError> {
    let mut outgoing = artifacts.open(name, n_bytes).await?;
    let mut bytes = Vec::new();
    loop {
        let chunk = outgoing.next(2).await?;
        if chunk.is_empty() {
            return Ok(bytes);
        }
        bytes.extend(chunk);
    }
}

#[tokio::test]
async fn a_picture_is_kept_under_its_hash_and_another_is_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let artifacts = opened(folder.path());
    assert_eq!(keep(&artifacts, b"abc").await, SHA256_OF_ABC);
    assert_eq!(read(&artifacts, SHA256_OF_ABC, 3).await.expect("is whole"), b"abc");
    let other = artifacts.begin().await.expect("a file can be made");
    assert!(matches!(other.finish(SHA256_OF_ABC).await, Err(ArtifactError::Hash { .. })));
    let n_files = fs::read_dir(artifacts.folder().path()).expect("is a folder").count();
    assert_eq!(n_files, 2, "nothing half is left beside the picture and the marker");
    assert!(!artifacts.has("../../etc/passwd").await);
}

#[tokio::test]
async fn a_picture_that_is_not_what_was_kept_is_found() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let artifacts = opened(folder.path());
    let name = keep(&artifacts, b"abcde").await;
    let path = artifacts.folder().path().join(&name);
    let fault = async || match read(&artifacts, &name, 5).await {
        Err(ReadError::Lost { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    fs::write(&path, "abcdX").expect("can be written");
    assert!(fault().await.contains("damaged"));
    fs::write(&path, "abc").expect("can be written");
    assert_eq!(fault().await, "has 3 bytes instead of 5");
    fs::write(&path, "").expect("can be written");
    assert_eq!(fault().await, "has 0 bytes instead of 5");
    fs::remove_file(&path).expect("is there");
    assert_eq!(fault().await, "is missing");
    keep(&artifacts, b"abcde").await;
    assert_eq!(read(&artifacts, &name, 5).await.expect("was made again"), b"abcde");
    fs::remove_dir_all(artifacts.folder().path()).expect("is there");
    assert!(
        matches!(read(&artifacts, &name, 5).await, Err(ReadError::Away { .. })),
        "no picture is lost by a missing disk"
    );
}

#[tokio::test]
async fn condemned_pictures_go_unless_they_come_anew() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let artifacts = opened(folder.path());
    let mut names = Vec::new();
    for bytes in ["a", "b", "c"] {
        names.push(keep(&artifacts, bytes.as_bytes()).await);
    }
    fs::write(artifacts.folder().path().join("notes"), "mine").expect("can be written");
    let all = names.iter().cloned().chain(["notes".into(), "../notes".into(), "ab".repeat(32)]);
    assert!(artifacts.remove(all) && !artifacts.remove([names[0].clone()]), "one sweep is enough");
    assert!(names.iter().all(|name| artifacts.is_condemned(name)));
    keep(&artifacts, b"b").await;
    artifacts.pardon([names[2].as_str()]);
    artifacts.sweep();
    assert!(!artifacts.has(&names[0]).await && artifacts.has(&names[1]).await && artifacts.has(&names[2]).await);
    assert!(artifacts.is_condemned(&names[0]) && !artifacts.is_condemned(&names[1]));
    assert!(artifacts.folder().path().join("notes").exists());
}
