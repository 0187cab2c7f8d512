//! What clients ask: lists, snapshots broken off and resumed, names that are none.

use futures_util::StreamExt;
use tonic_types::StatusExt;

use super::*;
use crate::artifact::tests::keep;
use crate::testing::{Farm, spec};

fn clients(farm: &Farm) -> Clients {
    let (artifacts, checkpoints) = (Arc::clone(&farm.artifacts), Arc::clone(&farm.checkpoints));
    let collector = Collector::new(farm.desk.clone(), Arc::clone(&artifacts), checkpoints);
    Clients::new(farm.desk.clone(), artifacts, collector)
}

async fn watch(clients: &Clients, job: &JobId, after_revision: u64) -> <Clients as RenderService>::WatchJobStream {
    let request = v1::WatchJobRequest { id: job.0.clone(), after_revision };
    clients.watch_job(Request::new(request)).await.expect("the job is known").into_inner()
}

/// Images and revisions of the next `n` messages.
async fn told(events: &mut <Clients as RenderService>::WatchJobStream, n: usize) -> Vec<(u32, u64)> {
    let event = |event: Result<v1::WatchJobResponse, Status>| {
        let event = event.expect("the coordinator is well");
        (event.image.expect("every event has one").index, event.revision)
    };
    events.by_ref().take(n).map(event).collect().await
}

async fn get(clients: &Clients, job: &JobId) -> v1::Job {
    let request = v1::GetJobRequest { id: job.0.clone() };
    let response = clients.get_job(Request::new(request)).await;
    response.expect("the job is known").into_inner().job.expect("an answer has a job")
}

async fn list(clients: &Clients, page_token: String) -> v1::ListJobsResponse {
    let request = v1::ListJobsRequest { page_size: 0, page_token };
    clients.list_jobs(Request::new(request)).await.expect("a page").into_inner()
}

#[test]
fn a_job_gets_an_id_whatever_the_clock_says() {
    let day = Duration::from_secs(86_400);
    let times = [SystemTime::UNIX_EPOCH - day, SystemTime::UNIX_EPOCH, SystemTime::now() + 4_000_000 * day];
    let ids: std::collections::BTreeSet<String> = times.iter().map(|time| new_job_id(*time).0).collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert!(ids.iter().all(|id| id.len() == 36), "{ids:?}");
    assert!(new_job_id(times[1]).0 < new_job_id(times[1] + day).0);
}

#[tokio::test]
async fn a_watcher_that_breaks_off_amid_a_snapshot_is_given_all_of_it_again() {
    let farm = Farm::start();
    let (clients, job) = (clients(&farm), farm.submit(spec(3)).await);
    let revision = get(&clients, &job).await.revision;
    let mut events = watch(&clients, &job, 0).await;
    let seen = told(&mut events, 2).await;
    assert_eq!(seen, [(0, 0), (1, 0)], "nothing has been seen before the last image is there");
    drop(events);
    let mut events = watch(&clients, &job, 0).await;
    assert_eq!(told(&mut events, 3).await, [(0, 0), (1, 0), (2, revision)]);
    farm.cancel(&job).await;
    let changes = [(0, revision + 1), (1, revision + 2), (2, revision + 3)];
    assert_eq!(told(&mut events, 4).await, changes, "nothing but what changed, and then the end");
}

#[tokio::test]
async fn a_watcher_that_comes_back_behind_changes_keeps_what_it_had_seen_until_all_is_told() {
    let farm = Farm::start();
    let (clients, job) = (clients(&farm), farm.submit(spec(3)).await);
    let seen = get(&clients, &job).await.revision;
    farm.cancel(&job).await;
    let mut events = watch(&clients, &job, seen).await;
    assert_eq!(told(&mut events, 2).await, [(0, seen), (1, seen)]);
    drop(events);
    let mut events = watch(&clients, &job, seen).await;
    assert_eq!(told(&mut events, 4).await, [(0, seen), (1, seen), (2, seen + 3)], "a job that is over ends its watch");
}

#[tokio::test]
async fn a_page_of_jobs_counts_images_and_a_job_has_them() {
    let farm = Farm::start();
    let clients = clients(&farm);
    let (first, second) = (farm.submit(spec(3)).await, farm.submit(spec(2)).await);
    farm.cancel(&first).await;
    let jobs = list(&clients, String::new()).await.jobs;
    assert_eq!(jobs.iter().map(|job| &job.id).collect::<Vec<_>>(), [&second.0, &first.0], "the newest first");
    assert!(jobs.iter().all(|job| job.images.is_empty()));
    let counts = |total, queued, cancelled| v1::ImageCounts { total, queued, cancelled, ..Default::default() };
    assert_eq!(jobs[0].image_counts, Some(counts(2, 2, 0)));
    assert_eq!(jobs[1].image_counts, Some(counts(3, 0, 3)));
    let whole = get(&clients, &first).await;
    assert_eq!((whole.images.len(), whole.image_counts), (3, jobs[1].image_counts));
}

#[tokio::test]
async fn a_page_of_jobs_with_long_prompts_is_short_and_none_is_left_out() {
    let farm = Farm::start();
    let clients = clients(&farm);
    let mut spec = spec(1);
    spec.request.prompt = "x".repeat(60_000);
    spec.request.negative = spec.request.prompt.clone();
    let mut submitted = Vec::new();
    for _ in 0..50 {
        submitted.push(farm.submit(spec.clone()).await.0);
    }
    submitted.reverse();
    let (mut listed, mut token, mut n_pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = list(&clients, token).await;
        assert!(page.jobs.len() * 120_000 < 4 << 20, "clients take 4 MiB");
        listed.extend(page.jobs.into_iter().map(|job| job.id));
        (token, n_pages) = (page.next_page_token, n_pages + 1);
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((listed, n_pages), (submitted, 3));
}

#[tokio::test]
async fn a_model_whose_name_is_none_is_refused() {
    let farm = Farm::start();
    let clients = clients(&farm);
    let long = "x".repeat(129);
    for (model, reason) in [("", "INVALID_REQUEST"), ("de\nmo", "MODEL"), (&long, "MODEL")] {
        let asked = spec(1);
        let spec = convert::spec_of(&asked.request, model, asked.count, asked.artifact);
        let request = v1::CreateJobRequest { spec: Some(spec), request_id: String::new() };
        let refused = clients.create_job(Request::new(request)).await.expect_err("is no name");
        assert_eq!(refused.code(), Code::InvalidArgument, "{model:?}");
        let info = refused.get_details_error_info().expect("a reason is data too");
        assert_eq!(info.reason, reason, "{model:?}: {}", refused.message());
    }
    assert!(list(&clients, String::new()).await.jobs.is_empty());
}

async fn finish(farm: &Farm, session: control::SessionId, job: &JobId, sha256: &str) {
    let (worker, epoch) = (plan::WorkerId("a".into()), farm.epoch(job).await);
    let artifact = ArtifactRef { sha256: sha256.into(), size_bytes: 3, kind: plan::ArtifactKind::Png8 };
    farm.desk.tell(Input::Finished { worker, session, epoch, artifact }).await.expect("the driver runs");
}

async fn delete(clients: &Clients, job: &JobId) -> Result<(), Status> {
    clients.delete_job(Request::new(v1::DeleteJobRequest { id: job.0.clone() })).await.map(drop)
}

#[tokio::test]
async fn a_picture_goes_with_the_last_job_that_has_it() {
    let farm = Farm::start();
    let clients = clients(&farm);
    let (session, _orders) = farm.join("a").await;
    let name = keep(&farm.artifacts, b"one").await;
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let job = farm.submit(spec(1)).await;
        finish(&farm, session, &job, &name).await;
        assert_eq!(get(&clients, &job).await.state(), v1::State::Done);
        jobs.push(job);
    }
    delete(&clients, &jobs[0]).await.expect("it is over");
    assert!(!farm.artifacts.is_condemned(&name), "the other job has it");
    delete(&clients, &jobs[1]).await.expect("it is over");
    farm.artifacts.sweep();
    assert!(!farm.artifacts.has(&name).await);
    let again = delete(&clients, &jobs[1]).await.expect_err("it is gone");
    assert_eq!(again.code(), Code::NotFound);
}

#[tokio::test]
async fn a_picture_that_went_with_a_deleted_job_before_it_was_written_down_is_made_again() {
    let farm = Farm::start();
    let clients = clients(&farm);
    let (session, _orders) = farm.join("a").await;
    let (job, name) = (farm.submit(spec(1)).await, "ab".repeat(32));
    let first = farm.epoch(&job).await;
    farm.artifacts.condemn([name.as_str()]);
    finish(&farm, session, &job, &name).await;
    let image = get(&clients, &job).await.images.remove(0);
    assert!(image.state() != v1::State::Done && image.artifact.is_none());
    farm.leave("a", session).await;
    let (session, _orders) = farm.join("a").await;
    assert!(farm.epoch(&job).await > first, "it is given out anew");
    finish(&farm, session, &job, &keep(&farm.artifacts, b"one").await).await;
    assert_eq!(get(&clients, &job).await.state(), v1::State::Done);
}
