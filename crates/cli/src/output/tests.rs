//! What `--out` means, and what becomes of a picture whose name is taken.

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

fn target(path: PathBuf, on_conflict: OnConflict) -> Target {
    Target { path, kind: ArtifactKind::Safetensors, on_conflict }
}

#[test]
fn a_default_name_that_is_taken_gets_a_number() {
    let dir = folder();
    let write =
        |on_conflict| target(dir.path().join("a.png"), on_conflict).write(b"x").map_err(|error| error.to_string());
    assert_eq!(write(OnConflict::Number), Ok(dir.path().join("a.png")));
    assert_eq!(write(OnConflict::Number), Ok(dir.path().join("a-2.png")));
    assert_eq!(write(OnConflict::Number), Ok(dir.path().join("a-3.png")));
    assert_eq!(write(OnConflict::Replace), Ok(dir.path().join("a.png")));
    assert_eq!(std::fs::read_dir(dir.path()).expect("is a folder").count(), 3);
}

#[test]
fn a_picture_that_cannot_have_its_name_is_kept_and_a_draft_is_not() {
    let dir = folder();
    let n_files = || std::fs::read_dir(dir.path()).expect("is a folder").count();
    std::fs::create_dir(dir.path().join("a.png")).expect("a folder can be made");
    for (on_conflict, n_kept) in [(OnConflict::Refuse, 1), (OnConflict::Replace, 2)] {
        let target = target(dir.path().join("a.png"), on_conflict);
        target.write_draft(b"draft").expect_err("a folder has the name");
        let said = target.write(b"x").expect_err("a folder has the name").to_string();
        let (_, kept) = said.split_once("the picture is whole in ").unwrap_or_else(|| panic!("{said}"));
        assert_eq!(std::fs::read(kept).expect("it is kept"), b"x");
        assert_eq!(n_files(), 1 + n_kept, "{said}");
    }
}

#[test]
fn an_ending_must_be_that_of_the_artifact() {
    let of = |out: &'static str, kind| {
        let target =
            Out::read(Some(Path::new(out))).and_then(|out| Target::of_artifact("id", Some(7), kind, out, false));
        target.map(|target| target.path.display().to_string()).map_err(|stop| stop.to_string())
    };
    assert_eq!(of("a.png", ArtifactKind::Png8), Ok("a-7.png".into()));
    assert_eq!(of("a.PNG", ArtifactKind::Png16), Ok("a-7.PNG".into()));
    assert_eq!(of("a.safetensors", ArtifactKind::Safetensors), Ok("a-7.safetensors".into()));
    assert_eq!(of(".", ArtifactKind::Safetensors), Ok("./id-7.safetensors".into()));
    for (out, kind) in [("a.safetensors", ArtifactKind::Png8), ("a.png", ArtifactKind::Safetensors)] {
        assert!(of(out, kind).expect_err(out).contains("the pictures of this job are"), "{out}");
    }
    for out in ["a.jpg", "a", "", ".png", "nowhere/"] {
        of(out, ArtifactKind::Png8).expect_err(out);
    }
}

#[test]
fn pictures_of_one_command_do_not_replace_each_other() {
    let mut targets =
        ["a.png", "b.png", "a.png", "a-2.png", "a.png"].map(|path| target(path.into(), OnConflict::Replace));
    keep_apart(&mut targets);
    assert_eq!(
        targets.map(|target| target.path),
        ["a.png", "b.png", "a-2.png", "a-2-2.png", "a-3.png"].map(PathBuf::from)
    );
}
