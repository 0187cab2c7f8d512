//! The edge table of ARCHITECTURE.md against what `cargo metadata` says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use cargo_metadata::{MetadataCommand, Package};
use tests::repo_root;

/// Which crates of ours a crate imports.
type Edges = BTreeMap<String, BTreeSet<String>>;

#[test]
fn the_edge_table_is_what_cargo_sees() {
    let document =
        fs::read_to_string(repo_root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is part of the project");
    assert_eq!(edges_of(&document), cargo_edges(), "left: ARCHITECTURE.md, right: the manifests");
}

#[test]
fn the_edge_table_is_read_as_written() {
    let document = "| a | b |\n|---|---|\n| `x` | no |\n\n\
        | crate | imports | never, and why |\n|---|---|---|\n| `one` | – | `two` |\n| `two` | `one`, `three` (facts) | – |\n\n| `four` | `one` | – |\n";
    let expected =
        Edges::from([("one".into(), BTreeSet::new()), ("two".into(), BTreeSet::from(["one".into(), "three".into()]))]);
    assert_eq!(edges_of(document), expected);
}

/// The rows of the table whose header is `| crate | imports | …`.
fn edges_of(document: &str) -> Edges {
    let rows = document.lines().skip_while(|line| !line.starts_with("| crate | imports |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        let name = quoted(cells.get(1)?).next()?;
        Some((name, quoted(cells.get(2)?).collect()))
    })
    .collect()
}

/// The words between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// Edges between members of the workspace, whether code, tests or builds need them.
fn cargo_edges() -> Edges {
    let members = members();
    let names: BTreeSet<String> = members.iter().map(|package| package.name.to_string()).collect();
    let imports = |package: &Package| {
        let ours = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
        ours.map(|dependency| dependency.name.clone()).filter(|name| names.contains(name)).collect()
    };
    members.iter().map(|package| (package.name.to_string(), imports(package))).collect()
}

/// The packages of the workspace, as cargo sees them.
pub(crate) fn members() -> Vec<Package> {
    let metadata = MetadataCommand::new()
        .manifest_path(repo_root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_owned()])
        .exec()
        .expect("cargo reads the manifests that it has just built from");
    metadata.workspace_packages().into_iter().cloned().collect()
}
