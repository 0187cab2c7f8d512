//! What clients of a farm do: ask, list, cancel, vanish.

use wire::v1::render_service_client::RenderServiceClient;

use super::{Farm, PICTURE, Process, Watch, check_steps, epoch, is_running, step, until};
use crate::desk::{Desk, FRESCO, Run};

#[test]
fn jobs_are_listed_cancelled_retried_and_told_apart() {
    let farm = Farm::start();
    let same = |seed: &str| {
        let flags = ["--seed", seed, "--request-id", "shot-1"];
        farm.call(&[&["submit"], &PICTURE[..], &flags].concat())
    };
    let job = same("1").quiet().stdout.trim().to_owned();
    assert_eq!(same("1").quiet().stdout.trim(), job, "the same name and wish are the same job");
    same("2").refused(2, &["request id `shot-1`", "choose another id"]);
    let get = farm.call(&["get", &job, "--json"]).quiet().json();
    assert_eq!((get["state"].as_str(), get["images"][0]["step"].as_u64()), (Some("QUEUED"), Some(0)));
    assert_eq!(farm.call(&["cancel", &job]).quiet().stdout.lines().count(), 2);
    assert_eq!(farm.call(&["wait", &job]).code, Some(6));
    farm.call(&["cancel", &job]).refused(1, &["is over already"]);
    let _worker = farm.worker("a");
    farm.call(&["retry", &job]).quiet();
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    farm.check_picture(&job, 1);
    assert!(farm.call(&["list"]).quiet().stdout.starts_with(&format!("{job} DONE 1/1")));
    farm.call(&["get", "nothing"]).refused(3, &["job `nothing` is not known", "fresco list"]);
    farm.call(&["download", "nothing"]).refused(3, &["job `nothing` is not known"]);
}

#[test]
fn deleted_jobs_are_gone_with_their_pictures_and_stay_so_after_a_restart() {
    let mut farm = Farm::start();
    // Beside the pictures is the marker that says whose they are.
    let n_pictures = |farm: &Farm| farm.desk.path("data/pictures").read_dir().expect("it is a folder").count() - 1;
    let job = farm.submit(21);
    farm.call(&["delete", &job]).refused(1, &["is not over", "fresco cancel"]);
    let worker = farm.worker("a");
    // The same picture twice, and another one.
    let (same, other) = (farm.submit(21), farm.submit(22));
    for job in [&job, &same, &other] {
        assert_eq!(farm.call(&["wait", job]).code, Some(0));
    }
    assert_eq!(n_pictures(&farm), 2);
    assert_eq!(farm.call(&["delete", &job]).quiet().stdout.trim(), job);
    farm.call(&["get", &job]).refused(3, &["is not known", "fresco list"]);
    farm.check_picture(&same, 21);
    assert_eq!(farm.call(&["delete", &same, &other]).quiet().stdout.lines().count(), 2);
    until("the pictures are gone", || n_pictures(&farm) == 0);
    farm.call(&["delete", &same]).refused(3, &["is not known"]);
    worker.kill();
    farm.coordinator.take().expect("it runs").kill();
    farm.start_coordinator();
    assert_eq!(farm.call(&["list", "--json"]).quiet().stdout, "", "nothing of them is written down");
}

#[test]
fn a_picture_cancelled_while_it_is_made_or_decoded_leaves_its_workers_free() {
    // A decode that is far from over when it is cancelled.
    const LARGE: [&str; 5] = ["a calm sea at dawn", "--size", "1024x1024", "--steps", "1"];
    let farm = Farm::start();
    let _workers = [farm.worker("a"), farm.worker("b")];
    let in_a_step = farm.submit(11);
    assert!(farm.watch(&in_a_step).until(|event| is_running(event) && step(event) >= 2));
    let in_the_decode = farm.call(&[&["submit"], &LARGE[..]].concat()).quiet().stdout.trim().to_owned();
    let mut watch = farm.watch(&in_the_decode);
    assert!(watch.until(|event| step(event) == 0), "it is watched from its beginning");
    assert_eq!(farm.call(&["cancel", &in_a_step]).code, Some(0));
    // Its attempt has begun, its step is kept, its decode has begun; the last two in any order.
    let n_events = |watch: &Watch| {
        let now = watch.seen.last().expect("there were events");
        watch.seen.iter().filter(|event| is_running(event) && epoch(event) == epoch(now)).count()
    };
    while n_events(&watch) < 3 {
        assert!(watch.until(|_| true), "it was done before");
    }
    assert_eq!(farm.call(&["cancel", &in_the_decode]).code, Some(0));
    let next = farm.submit(12);
    check_steps(farm.watch(&next).rest());
    farm.check_picture(&next, 12);
    for job in [in_a_step, in_the_decode] {
        assert_eq!(farm.call(&["wait", &job]).code, Some(6), "it stays cancelled");
    }
}

/// Connections, files and the like that a process has open.
fn n_open(process: &Process) -> usize {
    let open = format!("/proc/{}/fd", process.child.id());
    std::fs::read_dir(open).expect("the process is there").count()
}

#[test]
fn watchers_that_vanish_leave_nothing_behind_and_disturb_neither_job_nor_others() {
    const N_VANISHING: usize = 12;
    let farm = Farm::start();
    let coordinator = farm.coordinator.as_ref().expect("it runs");
    let first = farm.submit(16);
    let mut steady = farm.watch(&first);
    assert!(steady.until(|_| true), "the first event is what is true now");
    let n_before = n_open(coordinator);
    let mut vanishing: Vec<Watch> = (0..N_VANISHING).map(|_| farm.watch(&first)).collect();
    for watch in &mut vanishing {
        assert!(watch.until(|_| true));
    }
    assert!(n_open(coordinator) >= n_before + N_VANISHING);
    let (at_once, amid) = vanishing.split_at_mut(N_VANISHING / 2);
    at_once.iter().for_each(|watch| watch.process.signal("-KILL"));
    let worker = farm.worker("a");
    assert!(steady.until(|event| is_running(event) && step(event) >= 2));
    amid.iter().for_each(|watch| watch.process.signal("-KILL"));
    check_steps(steady.rest());
    farm.check_picture(&first, 16);
    // The worker's connections are not a watcher's.
    worker.kill();
    let last = farm.submit(17);
    let mut watch = farm.watch(&last);
    assert!(watch.until(|event| super::says(event, "waits for a worker")));
    drop(watch);
    // The steady watcher is gone too; each call here is a connection that comes and goes.
    let is_back = (0..100).any(|_| {
        farm.call(&["get", &last]).quiet();
        n_open(coordinator) <= n_before
    });
    assert!(is_back, "{} are open, {n_before} were", n_open(coordinator));
}

#[test]
fn a_coordinator_told_to_end_does_though_somebody_watches() {
    let mut farm = Farm::start();
    let job = farm.submit(18);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|_| true), "it is watched");
    let _worker = farm.worker("a");
    assert!(watch.until(is_running), "a worker is in a session");
    let coordinator = farm.coordinator.take().expect("it runs");
    coordinator.signal("-TERM");
    assert_eq!(coordinator.wait(), Some(0));
    farm.start_coordinator();
    check_steps(watch.rest());
    farm.check_picture(&job, 18);
}

#[test]
fn a_worker_told_to_end_while_it_reads_weights_does() {
    let desk = Desk::new();
    let model = desk.demo_copy();
    // Weights that never end: the pipe is opened by nobody for writing.
    let weights = model.join("vae/diffusion_pytorch_model.safetensors");
    std::fs::remove_file(&weights).expect("it is there");
    let made = std::process::Command::new("mkfifo").arg(&weights).status().expect("mkfifo is there");
    assert!(made.success());
    let path = model.to_str().expect("is UTF-8");
    let worker = Process::start(&mut desk.command(FRESCO, &["worker", "--model", path]));
    worker.until_it_heeds_sigterm();
    worker.signal("-TERM");
    assert_eq!(worker.wait(), Some(0));
}

#[test]
fn a_farm_that_listens_on_every_address_has_its_own_workers() {
    let desk = Desk::new();
    let args = ["serve", "--listen", "0.0.0.0:0", "--workers", "2", "--threads", "2"];
    let serve = Process::start(&mut desk.command(FRESCO, &args));
    let line = serve.until_it_says("serving on http://0.0.0.0:");
    let port: String =
        line.split("0.0.0.0:").nth(1).expect("a port").chars().take_while(char::is_ascii_digit).collect();
    let url = format!("http://127.0.0.1:{port}");
    let flags = ["a calm sea at dawn", "--size", "128x128", "--steps", "2"];
    let submit = [&["submit"], &flags[..], &["--wait", "--coordinator", &url]].concat();
    assert_eq!(desk.fresco(&submit).code, Some(0));
    serve.signal("-TERM");
    assert_eq!(serve.wait(), Some(0));
}

#[test]
fn downloads_go_by_the_rules_of_render() {
    let farm = Farm::start();
    let flags = ["submit", "a calm sea at dawn", "--size", "64", "--steps", "1", "--count", "2", "--seed", "7"];
    let job = farm.call(&flags).quiet().stdout.trim().to_owned();
    let _worker = farm.worker("a");
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    let pictures = || farm.desk.files().into_iter().filter(|name| name != "data").collect::<Vec<String>>();
    let download = |out: &str| farm.call(&["download", &job, "--out", out]);
    for (out, part) in [
        ("x.jpg", ".png or .safetensors"),
        ("noext", ".png or .safetensors"),
        ("x.safetensors", "are .png"),
        ("nowhere/", "create it"),
        ("nowhere/x.png", "create it"),
        (&format!("{}.png", "n".repeat(250)), "File name too long"),
    ] {
        // Names of several pictures have their seeds before the ending.
        download(out).refused(2, &[out.trim_end_matches(".png"), part]);
    }
    assert_eq!(pictures(), Vec::<String>::new());
    farm.desk.write("sea-8.png", "old");
    download("sea.png").refused(2, &["sea-8.png exists", "--force"]);
    assert_eq!(pictures(), ["sea-8.png"], "nothing is fetched before all names are checked");
    farm.call(&["download", &job, "--out", "sea.png", "--force"]).quiet();
    std::fs::create_dir(farm.desk.path("folder")).expect("a folder can be made");
    let own_names = [7, 8].map(|seed| format!("{job}-{seed}.png"));
    let lines = |names: &[String]| names.iter().map(|name| format!("{name}\n")).collect::<String>();
    let in_folder = own_names.clone().map(|name| format!("folder/{name}"));
    assert_eq!(download("folder").quiet().stdout, lines(&in_folder));
    assert_eq!(farm.call(&["download", &job]).quiet().stdout, lines(&own_names));
    assert_eq!(pictures(), [&own_names[0], &own_names[1], "folder", "sea-7.png", "sea-8.png"]);
    for (name, seed) in [("sea-7.png", "7"), ("sea-8.png", "8")] {
        farm.desk
            .fresco(&[&["render"], &flags[1..6], &["--seed", seed, "--out", "alone.png", "--force"]].concat())
            .quiet();
        assert!(farm.desk.read(name) == farm.desk.read("alone.png"), "{name}: other bytes");
    }
    // What is there is not fetched again: the farm has lost its pictures.
    for entry in std::fs::read_dir(farm.desk.path("data/pictures")).expect("it is there") {
        let entry = entry.expect("is an entry");
        if entry.file_name().len() == 64 {
            std::fs::remove_file(entry.path()).expect("can be removed");
        }
    }
    assert_eq!(download("folder").quiet().stdout, lines(&in_folder));
    assert_eq!(download("sea.png").quiet().stdout, lines(&["sea-7.png".into(), "sea-8.png".into()]));
    assert_ne!(download("other.png").code, Some(0));
}

#[test]
fn a_model_is_asked_for_by_its_name_and_whoever_has_it_is_told_about() {
    let farm = Farm::start();
    for (asked, name) in [("./demo", "demo"), ("demo/", "demo"), ("/srv/models/Sigma/", "Sigma"), ("Sigma", "Sigma")] {
        let run = farm.call(&["submit", "x", "--size", "512", "--model", asked]).quiet();
        let missing = format!("waits for a worker that has the model `{name}`");
        assert!(run.stderr.lines().count() == 1 && run.stderr.contains(&missing), "{run:?}");
        let job = farm.call(&["get", run.stdout.trim(), "--json"]).quiet().json();
        assert_eq!(job["model"].as_str(), Some(name), "{asked}");
    }
    farm.call(&["submit", "x", "--size", "64", "--model", ".."]).refused(2, &["`..`", "names no model"]);
    let worker = farm.worker("a");
    worker.until_it_says("joined");
    let run = farm.call(&["submit", "x", "--size", "512", "--steps", "1"]).quiet();
    assert_eq!(run.stderr, "");
}

#[test]
fn whoever_waits_gets_the_id_alone() {
    let farm = Farm::start();
    let _worker = farm.worker("a");
    let flags = ["submit", "a calm sea at dawn", "--size", "64", "--steps", "1", "--wait"];
    let run = farm.call(&flags);
    let (job, last) = (run.stdout.trim(), run.stderr.lines().last().unwrap_or_default());
    assert!(run.code == Some(0) && run.stdout.lines().count() == 1, "{run:?}");
    assert!(last.starts_with(&format!("{job} DONE 1/1")), "{run:?}");
    farm.call(&["get", job]).quiet();
    let run = farm.call(&[&flags[..], &["--json"]].concat());
    assert_eq!(run.json()["state"].as_str(), Some("DONE"), "{run:?}");
    farm.desk.write("shots.txt", "a calm sea\na deep canyon\n");
    let run = farm.call(&["submit", "--prompts", "shots.txt", "--size", "64", "--steps", "1", "--wait"]);
    assert!(run.code == Some(0) && run.stdout.lines().count() == 2, "{run:?}");
    let job = run.stdout.lines().last().unwrap_or_default();
    assert_eq!(farm.call(&["get", job, "--json"]).quiet().json()["prompt"].as_str(), Some("a deep canyon"));
}

#[test]
fn seeds_beyond_the_largest_are_refused_by_the_client_and_by_the_farm() {
    let farm = Farm::start();
    let largest = u64::MAX.to_string();
    farm.call(&["submit", "x", "--size", "64", "--seed", &largest, "--count", "2"])
        .refused(2, &[&largest, "count of 2"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("can be built");
    let refused = runtime.block_on(async {
        let mut farm = RenderServiceClient::connect(farm.url.clone()).await.expect("it listens");
        let spec = wire::v1::RenderSpec {
            model: "demo".into(),
            prompt: "x".into(),
            width_px: 64,
            height_px: 64,
            steps: 1,
            guidance: Some(4.5),
            seed: u64::MAX,
            count: 2,
            ..Default::default()
        };
        let request = wire::v1::CreateJobRequest { spec: Some(spec), request_id: String::new() };
        farm.create_job(request).await.expect_err("there is one seed left")
    });
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("count of 2"), "{refused}");
    farm.call(&["submit", "x", "--size", "64", "--seed", &largest]).quiet();
}

#[test]
fn a_farm_that_is_not_there_is_said_in_one_line() {
    let desk = Desk::new();
    desk.fresco(&["list", "--coordinator", "http://127.0.0.1:9"]).refused(9, &["http://127.0.0.1:9", "fresco serve"]);
    desk.fresco(&["list", "--coordinator", "nonsense at all"]).refused(2, &["nonsense at all"]);
    // It would be spoken to in the clear.
    desk.fresco(&["list", "--coordinator", "https://127.0.0.1:9"]).refused(2, &["https://127.0.0.1:9", "no TLS"]);
    desk.fresco(&["worker", "--advertise", "https://127.0.0.1:9"]).refused(2, &["https://127.0.0.1:9", "no TLS"]);
    for role in ["serve", "coordinator", "worker"] {
        let mut command = desk.command(FRESCO, &[role]);
        Run::of(command.env("FRESCO_TLS_CERT", "tls.crt")).refused(1, &["FRESCO_TLS_CERT", "no TLS"]);
    }
    desk.fresco(&["coordinator", "--store", "etcd:x"]).refused(2, &["redb:PATH"]);
    desk.fresco(&["coordinator", "--artifacts", "s3://x"]).refused(2, &["file:DIR"]);
}

#[test]
fn one_process_with_many_workers_draws_the_bytes_of_one() {
    let desk = Desk::new();
    for size in ["128x64", "112x240"] {
        let flags = ["render", "a deep canyon at noon", "--size", size, "--steps", "3", "--force"];
        desk.fresco(&[&flags[..], &["--out", "1.png"]].concat()).quiet();
        for workers in ["2", "3", "4"] {
            desk.fresco(&[&flags[..], &["--out", "n.png", "--workers", workers]].concat()).quiet();
            assert!(desk.read("1.png") == desk.read("n.png"), "{workers} workers, {size}: other bytes");
        }
    }
    let latents =
        ["render", "a deep canyon at noon", "--size", "112x240", "--steps", "2", "--latents", "1.safetensors"];
    desk.fresco(&["render", "a pine forest", "--size", "112x240", "--steps", "1", "--out", "1.safetensors"]).quiet();
    let [one, many] = ["one.png", "many.png"].map(|out| [&latents[..], &["--out", out, "--workers"]].concat());
    desk.fresco(&[&one[..], &["1"]].concat()).quiet();
    desk.fresco(&[&many[..], &["3"]].concat()).quiet();
    assert!(desk.read("one.png") == desk.read("many.png"), "noise from a file: other bytes");
    let both = ["render", "x", "--workers", "2", "--preview-every", "1"];
    desk.fresco(&both).refused(2, &["--preview-every", "--workers 2"]);
}
