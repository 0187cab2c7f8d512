//! Ctrl-C, SIGTERM and SIGHUP: every command ends and leaves nothing behind; roles hand over and end well.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use crate::desk::{Desk, FRESCO};

const SIGNALS: [&str; 3] = ["-INT", "-TERM", "-HUP"];
const LONG: [&str; 6] = ["render", "x", "--size", "128x128", "--steps", "999"];

/// A process, and what it says on standard error.
struct Running {
    child: Child,
    said: Lines<BufReader<ChildStderr>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let piped = command.env("FRESCO_LOG", "fresco=debug").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("the program can be started");
        let said = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        Self { child, said }
    }

    fn until_it_says(&mut self, part: &str) {
        let is_said = self.said.by_ref().map_while(Result::ok).any(|line| line.contains(part));
        assert!(is_said, "it ended and did not say `{part}`");
    }

    /// Waits until SIGTERM is no longer the system's business.
    fn until_it_heeds_sigterm(&self) {
        const SIGTERM_BIT: u64 = 1 << 14;
        let status = format!("/proc/{}/status", self.child.id());
        let heeds = || {
            let text = std::fs::read_to_string(&status).expect("it runs");
            let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("Linux tells");
            u64::from_str_radix(caught.trim(), 16).expect("a mask") & SIGTERM_BIT != 0
        };
        while !heeds() {
            std::thread::yield_now();
        }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
    }

    /// Its exit code and its last line.
    fn end(mut self) -> (Option<i32>, String) {
        let last = self.said.by_ref().map_while(Result::ok).last().unwrap_or_default();
        (self.child.wait().expect("it was started here").code(), last)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn is_empty(folder: &Path) -> bool {
    folder.read_dir().expect("it is a folder").next().is_none()
}

#[test]
fn a_render_ends_at_once_and_leaves_no_file() {
    for signal in SIGNALS {
        let desk = Desk::new();
        let args = [&LONG[..], &["--preview-every", "1", "--out", "a.png"]].concat();
        let mut running = Running::start(&mut desk.command(FRESCO, &args));
        running.until_it_says("preview written");
        running.signal(signal);
        let end = (Some(130), "error: interrupted: the picture at work was not written".to_owned());
        assert_eq!(running.end(), end, "{signal}");
        assert_eq!(desk.files(), Vec::<String>::new(), "{signal}");
    }
}

#[test]
fn a_render_on_many_workers_leaves_no_folder() {
    for signal in SIGNALS {
        let desk = Desk::new();
        let temporary = desk.path("temporary");
        std::fs::create_dir(&temporary).expect("a folder can be made");
        let args = [&LONG[..], &["--workers", "2", "--out", "a.png"]].concat();
        let mut command = desk.command(FRESCO, &args);
        let mut running = Running::start(command.env("TMPDIR", &temporary));
        // Its coordinator is at work once there is a store.
        let folder = || temporary.read_dir().expect("it is a folder").map_while(Result::ok).next();
        while !folder().is_some_and(|folder| folder.path().join("store.redb").exists()) {
            assert!(running.child.try_wait().expect("it was started here").is_none(), "it ended early");
            std::thread::yield_now();
        }
        let name = folder().expect("it is there").file_name();
        assert!(name.to_string_lossy().starts_with("fresco-"), "{name:?}");
        running.signal(signal);
        assert_eq!(running.end().0, Some(130), "{signal}");
        assert!(is_empty(&temporary), "{signal}");
    }
}

#[test]
fn a_render_that_reads_its_weights_ends_too() {
    let desk = Desk::new();
    let model = desk.demo_copy();
    let args = [&LONG[..], &["--out", "a.png", "--model", model.to_str().expect("is UTF-8")]].concat();
    // Weights that never come: nobody opens the pipe for writing.
    let weights = model.join("vae/diffusion_pytorch_model.safetensors");
    std::fs::remove_file(&weights).expect("it is there");
    assert!(Command::new("mkfifo").arg(&weights).status().expect("mkfifo is there").success());
    let running = Running::start(&mut desk.command(FRESCO, &args));
    running.until_it_heeds_sigterm();
    running.signal("-TERM");
    assert_eq!(running.end().0, Some(130));
    assert_eq!(desk.files(), Vec::<String>::new());
}

#[test]
fn what_a_killed_render_left_behind_does_not_stop_the_next() {
    let desk = Desk::new();
    let args = [&LONG[..], &["--preview-every", "1", "--out", "a.png"]].concat();
    let mut running = Running::start(&mut desk.command(FRESCO, &args));
    running.until_it_says("preview written");
    running.signal("-KILL");
    running.end();
    assert!(desk.files().contains(&"a.preview.png".to_owned()), "{:?}", desk.files());
    desk.render(&["--preview-every", "1", "--out", "a.png"]).quiet();
    assert!(!desk.files().contains(&"a.preview.png".to_owned()), "{:?}", desk.files());
    // A picture is no preview, whatever it is called.
    std::fs::rename(desk.path("a.png"), desk.path("b.preview.png")).expect("it is there");
    desk.render(&["--preview-every", "1", "--out", "b.png"]).refused(2, &["b.preview.png exists"]);
}

#[test]
fn a_hangup_that_nohup_ignores_changes_nothing() {
    if !Path::new("/proc/self/status").exists() {
        return; // Elsewhere nobody tells what is ignored.
    }
    let desk = Desk::new();
    let args = ["render", "x", "--size", "128x128", "--steps", "12", "--preview-every", "1", "--out", "a.png"];
    let script = "trap '' HUP; exec \"$0\" \"$@\"";
    let mut running = Running::start(&mut desk.command("sh", &[&["-c", script, FRESCO], &args[..]].concat()));
    running.until_it_says("preview written");
    running.signal("-HUP");
    assert_eq!(running.end().0, Some(0));
    assert_eq!(desk.files(), ["a.png"]);
}

#[test]
fn roles_end_well_at_any_signal() {
    for signal in SIGNALS {
        for (role, started) in [("serve", "serving on"), ("coordinator", "coordinating on")] {
            let desk = Desk::new();
            let mut running = Running::start(&mut desk.command(FRESCO, &[role, "--listen", "localhost:0"]));
            running.until_it_says(started);
            running.signal(signal);
            assert_eq!(running.end().0, Some(0), "{role} {signal}");
        }
        let desk = Desk::new();
        let worker = ["worker", "--coordinator", "http://127.0.0.1:9", "--status", "localhost:0"];
        let mut running = Running::start(&mut desk.command(FRESCO, &worker));
        running.until_it_says("metrics on");
        running.signal(signal);
        assert_eq!(running.end().0, Some(0), "worker {signal}");
    }
}

#[test]
fn whoever_waits_for_a_job_is_told_that_it_goes_on() {
    let desk = Desk::new();
    let mut farm = Running::start(&mut desk.command(FRESCO, &["coordinator", "--listen", "127.0.0.1:0"]));
    let line = farm.said.by_ref().map_while(Result::ok).find(|line| line.contains("coordinating on"));
    let line = line.expect("it says where it is");
    let url = line.split_once("on ").map(|(_, url)| url.trim().to_owned()).expect("an address");
    for signal in SIGNALS {
        let args = ["submit", "x", "--size", "64", "--wait", "--coordinator", &url];
        let mut waiting = Running::start(&mut desk.command(FRESCO, &args));
        waiting.until_it_says("waits for a worker");
        waiting.signal(signal);
        let (code, last) = waiting.end();
        assert_eq!(code, Some(130), "{signal}");
        assert!(last.starts_with("error: interrupted: job ") && last.contains("`fresco wait "), "{last}");
    }
    farm.signal("-TERM");
    assert_eq!(farm.end().0, Some(0));
}
