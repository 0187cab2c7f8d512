//! A disc that is full from some write on, and then has room again.

use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;

const ROOM: u32 = u32::MAX;

/// A file that takes so many more writes.
#[derive(Debug)]
struct FillingFile {
    file: FileBackend,
    writes_left: Arc<AtomicU32>,
}

impl FillingFile {
    fn spend(&self) -> io::Result<()> {
        let spent = self.writes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
            ROOM => Some(ROOM),
            left => left.checked_sub(1),
        });
        spent.map(|_| ()).map_err(|_| ErrorKind::StorageFull.into())
    }
}

impl StorageBackend for FillingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.spend()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.spend()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?;
        self.file.write(offset, data)
    }
}

#[test]
fn a_full_disc_leaves_the_batch_whole_or_absent_and_work_goes_on_when_it_has_room() {
    let folder = tempfile::tempdir().expect("the system has room for a folder");
    let writes_left = Arc::new(AtomicU32::new(ROOM));
    let counter = Arc::clone(&writes_left);
    let opener = move |path: &Path| {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let file = FillingFile { file: FileBackend::new(file)?, writes_left: Arc::clone(&counter) };
        Builder::new().set_check_integrity_on_open(true).create_with_backend(file)
    };
    let path = folder.path().join("store.redb");
    let store = EmbeddedStore::open_with(path.clone(), Box::new(opener)).expect("there is room");
    let leader = store.lead("coordinator", Duration::from_secs(3)).expect("there is room");
    let mut seen = None;
    let mut n_failed = 0;
    for n_writes in 0.. {
        let value = vec![n_writes as u8; 20_000];
        let batch = Txn::new(&leader).put("a", seen, value.clone()).put("b", seen, value.clone());
        writes_left.store(n_writes, Ordering::Relaxed);
        let result = store.commit(&batch);
        if let Err(failure) = &result {
            n_failed += 1;
            assert!(failure.is_retryable(), "after {n_writes} writes: {failure}");
            assert!(failure.to_string().contains(&*path.to_string_lossy()), "{failure}");
            store.get("a").expect_err("the disc is still full, and opening a file after a failure writes to it");
        }
        writes_left.store(ROOM, Ordering::Relaxed);
        let page = store.list("", None, 10).expect("there is room again");
        assert!(page.windows(2).all(|pair| pair[0].1 == pair[1].1), "after {n_writes} writes: half a batch");
        let was_written = page.first().is_some_and(|(_, found)| found.value == value);
        assert_eq!(page.len(), if seen.is_some() || was_written { 2 } else { 0 });
        seen = page.first().map(|(_, found)| found.version);
        if let Ok(revision) = result {
            assert!(was_written && seen == Some(revision), "after {n_writes} writes: acknowledged and lost");
            break;
        }
        let again = Txn::new(&leader).put("a", seen, "again").put("b", seen, "again");
        seen = Some(store.commit(&again).expect("there is room again, and the same leader"));
    }
    assert!(n_failed > 3, "a commit is more than {n_failed} writes");
}
