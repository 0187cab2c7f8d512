//! Facts about meshes: seats, bands by speed, who decodes what.

use super::*;

fn grid(rows: usize) -> TokenGrid {
    TokenGrid { rows, cols: 8 }
}

fn sizes(mesh: &Mesh) -> Vec<usize> {
    mesh.bands().iter().map(|band| band.n_rows()).collect()
}

#[test]
fn two_equal_workers_take_a_branch_each() {
    let choice = Mesh::choose(grid(16), 2, true, &[1.0, 1.0]);
    assert_eq!((choice.mesh.n_branch_groups(), sizes(&choice.mesh)), (2, vec![16]));
    assert_eq!(choice.mesh.partner(Rank(0)), Some(Rank(1)));
    assert_eq!(choice.mesh.branches(Rank(1), true), &[Branch::Unconditional]);
}

#[test]
fn a_slow_worker_gets_fewer_rows() {
    let choice = Mesh::choose(grid(24), 1, true, &[1.0, 0.2]);
    assert_eq!((choice.mesh.n_branch_groups(), sizes(&choice.mesh)), (1, vec![20, 4]));
    assert_eq!(choice.cost, 40.0);
}

#[test]
fn three_workers_split_rows_and_run_both_branches() {
    let choice = Mesh::choose(grid(15), 2, true, &[1.0, 1.0, 1.0]);
    assert_eq!((choice.mesh.n_branch_groups(), sizes(&choice.mesh)), (1, vec![6, 6, 3]));
    assert_eq!(choice.mesh.branches(Rank(2), true), &Branch::BOTH);
    assert_eq!(choice.mesh.sequence_group(Rank(1)), [Rank(0), Rank(1), Rank(2)]);
    assert_eq!(choice.mesh.partner(Rank(0)), None);
}

#[test]
fn neighbours_in_speed_are_partners() {
    let choice = Mesh::choose(grid(30), 1, true, &[2.0, 2.0, 1.0, 1.0]);
    assert_eq!((choice.mesh.n_branch_groups(), sizes(&choice.mesh)), (2, vec![20, 10]));
    assert_eq!(choice.seats, [0, 2, 1, 3]);
    assert_eq!(choice.mesh.sequence_group(Rank(3)), [Rank(2), Rank(3)]);
}

#[test]
fn more_workers_than_rows_leave_some_idle() {
    let choice = Mesh::choose(grid(2), 2, false, &[1.0; 5]);
    assert_eq!((choice.mesh.n_ranks(), sizes(&choice.mesh)), (1, vec![2]));
    let guided = Mesh::choose(grid(2), 2, true, &[1.0; 5]);
    assert_eq!((guided.mesh.n_ranks(), guided.mesh.n_branch_groups()), (2, 2));
}

#[test]
fn an_unguided_request_has_one_branch() {
    let choice = Mesh::choose(grid(8), 1, false, &[1.0, 1.0]);
    assert_eq!((choice.mesh.n_branch_groups(), sizes(&choice.mesh)), (1, vec![4, 4]));
    assert_eq!(choice.mesh.branches(Rank(0), false), &[Branch::Conditional]);
}

#[test]
fn every_latent_row_is_decoded_once_in_order() {
    for (n_branch_groups, bands) in [(1, vec![3, 1]), (2, vec![1, 4]), (2, vec![1])] {
        let n_rows = bands.iter().sum();
        let mut start = 0;
        let ranges = bands.iter().map(|n| {
            start += n;
            RowRange { start: start - n, end: start }
        });
        let mesh = Mesh::new(n_branch_groups, ranges.collect(), n_rows, 1).expect("a mesh");
        assert_eq!(mesh.decode_bands().len(), mesh.n_ranks(), "every rank has rows");
        let mut row = 0;
        for (rank, band) in mesh.decode_bands() {
            assert_eq!(band.start, row);
            assert!(mesh.band(rank).start * 2 <= band.start && band.end <= mesh.band(rank).end * 2, "rank {rank}");
            row = band.end;
        }
        assert_eq!(row, 2 * n_rows);
    }
}

#[test]
fn bad_meshes_are_refused_by_number() {
    let band = |start, end| RowRange { start, end };
    let refused = |groups, bands, rows, unit| Mesh::new(groups, bands, rows, unit).expect_err("refused").to_string();
    assert_eq!(refused(3, vec![band(0, 4)], 4, 1), "a mesh has 1 or 2 branch groups, not 3");
    assert!(refused(1, vec![band(0, 2), band(3, 4)], 4, 1).starts_with("band 1 of a mesh starts at row 3"));
    assert!(refused(1, vec![band(0, 0)], 4, 1).starts_with("band 0"));
    assert!(refused(1, vec![band(0, 3), band(3, 4)], 4, 2).contains("2-fold"));
    assert_eq!(refused(1, vec![band(0, 3)], 4, 1), "the bands of a mesh hold 3 rows, the picture 4");
}
