//! Rules about the files themselves, so that a review need not look for them.

use std::fs;
use std::path::Path;

use cargo_metadata::Package;
use tests::{repo_root, rust_files};

use crate::architecture::members;

/// About one sitting, with room.
const MAX_LINES: usize = 500;
/// Words that name nothing.
const EMPTY_NAMES: [&str; 9] = ["util", "utils", "common", "manager", "handler", "helper", "helpers", "misc", "stuff"];
/// What is left behind by unfinished work.
const LEFT_OVERS: [&str; 4] = ["todo!", "unimplemented!", "dbg!", "#[ignore"];

#[test]
fn every_rust_file_keeps_the_rules() {
    let files = rust_files().expect("the sources can be read");
    assert!(files.len() > 20, "only {} files were found", files.len());
    let faults: Vec<String> = files.iter().flat_map(|(path, text)| faults_of(path, text)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_crate_but_kernels_forbids_unsafe_code() {
    let is_at_fault = |(package, root): &(String, String)| {
        let text = fs::read_to_string(root).expect("a crate's root can be read");
        let forbids = text.lines().any(|line| line == "#![forbid(unsafe_code)]");
        forbids == (package == "kernels")
    };
    let at_fault: Vec<(String, String)> = crate_roots().into_iter().filter(is_at_fault).collect();
    assert!(at_fault.is_empty(), "`#![forbid(unsafe_code)]` is missing, or stands in kernels: {at_fault:?}");
}

#[test]
fn dependencies_take_their_versions_from_the_workspace() {
    for path in members().into_iter().map(|package| package.manifest_path) {
        let text = fs::read_to_string(&path).expect("a manifest can be read");
        let faults = own_versions(&text);
        assert!(faults.is_empty(), "{path}: say the version in the workspace's manifest: {faults:?}");
    }
}

#[test]
fn the_documents_exist() {
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "deny.toml", "models/demo/README.md"] {
        let bytes = fs::metadata(repo_root().join(name)).map(|file| file.len()).unwrap_or(0);
        assert!(bytes > 0, "{name} is missing or empty");
    }
}

#[test]
fn each_rule_finds_its_offender() {
    let check = |path: &str, text: &str, expected: &[&str]| {
        let faults = faults_of(Path::new(path), text);
        assert_eq!(faults.len(), expected.len(), "{path}: {faults:?}");
        for (fault, expected) in faults.iter().zip(expected) {
            assert!(fault.contains(expected), "{fault} does not say {expected}");
        }
    };
    check("crates/a/src/lib.rs", "//! Says what it is.\nfn f() {}\n", &[]);
    check("crates/a/src/lib.rs", "fn f() {}\n", &["opens with"]);
    check("crates/a/src/b/mod.rs", "//! x\n", &["b.rs"]);
    check("crates/a/src/file_utils.rs", "//! x\n", &["names nothing"]);
    check("crates/a/src/lib.rs", "//! x\nmod common;\n", &["names nothing"]);
    check("crates/a/src/lib.rs", &format!("//! x\n{}", "\n".repeat(MAX_LINES)), &["lines"]);
    check("crates/a/src/lib.rs", "//! x\nfn f() { todo!() }\n", &["todo!"]);
    check("crates/a/src/lib.rs", "//! x\n#[ignore = \"slow\"]\n", &["#[ignore"]);
    check("crates/a/src/lib.rs", "//! x\nfn f() { unsafe { g() } }\n", &["unsafe"]);
    check("kernels/src/lib.rs", "//! x\nfn f() { unsafe { g() } }\n", &[]);
    check("crates/a/src/lib.rs", "//! x unsafe\n// todo!\nconst A: &str = \"unsafe \\\" todo!\"; // unsafe\n", &[]);
    check("crates/a/src/lib.rs", "//! x\n#![forbid(unsafe_code)]\n", &[]);
    assert_eq!(own_versions("[package]\nname = \"a\"\n[dependencies]\nb.workspace = true\nc = \"1\"\n"), ["c = \"1\""]);
    assert_eq!(own_versions("[dev-dependencies.b]\nversion = \"1\"\n"), ["[dev-dependencies.b]", "version = \"1\""]);
    assert!(
        own_versions("[dependencies]\nb = { workspace = true, optional = true } # why\n\n[lints]\nworkspace = true\n")
            .is_empty()
    );
}

/// What is wrong with one Rust file, each fault in one line.
fn faults_of(path: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |line_idx: usize, what: String| faults.push(format!("{}:{}: {what}", path.display(), line_idx + 1));
    if !text.starts_with("//!") {
        fault(0, "a file opens with `//!` and what it is for".into());
    }
    if path.file_name().is_some_and(|name| name == "mod.rs") {
        fault(0, "a module `b` with parts is `b.rs` beside `b/`".into());
    }
    let n_lines = text.lines().count();
    if n_lines > MAX_LINES {
        fault(n_lines - 1, format!("{n_lines} lines, {MAX_LINES} is the limit: is it one thing?"));
    }
    for part in path.iter().filter_map(|part| part.to_str()).filter(|part| names_nothing(part)) {
        fault(0, format!("`{part}` names nothing"));
    }
    for (line_idx, line) in text.lines().enumerate() {
        let code = code_of(line);
        let words: Vec<&str> =
            code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
        if words.contains(&"unsafe") && !path.starts_with("kernels") {
            fault(line_idx, "unsafe code belongs in `kernels`".into());
        }
        let module = words.iter().position(|word| *word == "mod").and_then(|at| words.get(at + 1));
        if let Some(module) = module.filter(|module| names_nothing(module)) {
            fault(line_idx, format!("`{module}` names nothing"));
        }
        for left_over in LEFT_OVERS.iter().filter(|left_over| code.contains(**left_over)) {
            fault(line_idx, format!("`{left_over}` is unfinished work"));
        }
    }
    faults
}

fn names_nothing(name: &str) -> bool {
    name.trim_end_matches(".rs").split(['_', '-']).any(|word| EMPTY_NAMES.contains(&word))
}

/// A line without its comment and without what its string literals hold.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let line = line.replace("'\"'", "' '");
    let mut rest = line.chars().peekable();
    let mut is_in_string = false;
    while let Some(c) = rest.next() {
        match c {
            '\\' if is_in_string => {
                rest.next();
            }
            '"' => is_in_string = !is_in_string,
            '/' if !is_in_string && rest.peek() == Some(&'/') => break,
            c if !is_in_string => code.push(c),
            _ => {}
        }
    }
    code
}

/// Lines of a manifest's dependency tables that do not defer to the workspace.
fn own_versions(manifest: &str) -> Vec<&str> {
    let mut is_dependencies = false;
    let mut faults = Vec::new();
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('[') {
            is_dependencies = line.contains("dependencies");
            if is_dependencies && !line.ends_with("dependencies]") {
                faults.push(line);
            }
        } else if is_dependencies && !line.contains("workspace = true") {
            faults.push(line);
        }
    }
    faults
}

/// Package and root file of every target of the workspace.
fn crate_roots() -> Vec<(String, String)> {
    let targets = |package: Package| {
        let name = package.name.to_string();
        package.targets.into_iter().map(move |target| (name.clone(), target.src_path.to_string()))
    };
    members().into_iter().flat_map(targets).collect()
}
