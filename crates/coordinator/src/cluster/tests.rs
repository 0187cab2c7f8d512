//! What members send: checkpoints and pictures, too long, too slow, damaged.

use control::SessionId;
use plan::JobId;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use wire::v1::cluster_service_client::ClusterServiceClient;
use wire::v1::cluster_service_server::ClusterServiceServer;

use super::*;
use crate::artifact::tests::sha256;
use crate::testing::{Farm, spec};

/// A farm with a job of one image that one worker is at, and who speaks for the worker.
struct Trial {
    farm: Farm,
    job: JobId,
    epoch: Epoch,
    session: SessionId,
    client: ClusterServiceClient<Channel>,
    /// Held, or the worker would be gone.
    _orders: mpsc::Receiver<v1::SessionResponse>,
}

impl Trial {
    async fn start(part_within: Duration) -> Self {
        let farm = Farm::start();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let kept = (Arc::clone(&farm.checkpoints), Arc::clone(&farm.artifacts));
        let (identity, metrics) = (farm.identity.clone(), farm.metrics.clone());
        let members = Members::new(farm.desk.clone(), identity, kept, metrics, part_within);
        let server = Server::builder().add_service(ClusterServiceServer::new(members));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let client = ClusterServiceClient::connect(url).await.expect("it listens");
        let job = farm.submit(spec(1)).await;
        let (session, _) = farm.join("a").await;
        // An image goes on from a step that was kept, with whoever is there.
        let n_steps_done = 1;
        let epoch = farm.epoch(&job).await;
        farm.desk.tell(Input::StepKept { epoch, n_steps_done }).await.expect("the driver runs");
        farm.leave("a", session).await;
        let (session, orders) = farm.join("b").await;
        let epoch = farm.epoch(&job).await;
        Self { farm, job, epoch, session, client, _orders: orders }
    }

    /// The secret of the worker in a seat of an attempt at the job's image.
    fn secret(&self, epoch: Epoch, worker: &str) -> Bytes {
        let image = ImageId { job: self.job.clone(), image: plan::ImageIdx(0) };
        self.farm.identity.seat_secret(epoch, &image, Rank(0), &WorkerId(worker.into())).into()
    }

    /// Rows of a whole step.
    fn rows(&self, bytes: &Bytes) -> v1::PutCheckpointRequest {
        v1::PutCheckpointRequest {
            epoch: self.epoch.0,
            secret: self.secret(self.epoch, "b"),
            n_steps_done: 2,
            n_rows: 8,
            crc32c: checksum::crc32c(bytes),
            chunk: bytes.clone(),
            ..v1::PutCheckpointRequest::default()
        }
    }

    /// Hands in a picture of `bytes`, announced as `size_bytes` long, in parts.
    async fn hand_in(&mut self, size_bytes: u64, parts: &[&'static str]) -> Result<(), Status> {
        let sha256 = sha256(parts.concat().as_bytes());
        let mut announced = Some(v1::Artifact { sha256, size_bytes, kind: v1::ArtifactKind::Png8.into() });
        let secret = self.secret(self.epoch, "b");
        let part = |chunk: &&'static str| v1::PutArtifactRequest {
            epoch: self.epoch.0,
            secret: secret.clone(),
            artifact: announced.take(),
            chunk: Bytes::from_static(chunk.as_bytes()),
        };
        let parts: Vec<_> = parts.iter().map(part).collect();
        self.client.put_artifact(tokio_stream::iter(parts)).await.map(drop)
    }
}

fn step_bytes() -> Bytes {
    (0..2 * 4 * 8 * 8 * 4_u32).map(|idx| idx as u8).collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn a_picture_longer_than_announced_is_not_taken() {
    let mut trial = Trial::start(PART_WITHIN).await;
    for parts in [vec!["abcd"], vec!["ab", "cd"], vec!["abc", "d"]] {
        let refused = trial.hand_in(3, &parts).await.expect_err("it is too long");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("more than the 3 bytes"), "{}", refused.message());
        assert!(!trial.farm.artifacts.has(&sha256(b"abcd")).await);
    }
    trial.hand_in(4, &["ab", "cd"]).await.expect("it is as announced");
    assert!(trial.farm.artifacts.has(&sha256(b"abcd")).await);
}

#[tokio::test]
async fn a_sender_that_stops_amid_its_parts_is_hung_up_on() {
    let mut trial = Trial::start(Duration::from_millis(20)).await;
    let epoch = trial.epoch.0;
    let artifact = Some(v1::Artifact { sha256: sha256(b"abcd"), size_bytes: 4, kind: 0 });
    let secret = trial.secret(trial.epoch, "b");
    let first = v1::PutArtifactRequest { epoch, artifact, chunk: Bytes::from_static(b"ab"), secret };
    let parts = tokio_stream::iter([first]).chain(tokio_stream::pending());
    let refused = trial.client.put_artifact(parts).await.expect_err("nothing more comes");
    assert_eq!(refused.code(), Code::DeadlineExceeded);

    let first = v1::PutCheckpointRequest { chunk: Bytes::new(), ..trial.rows(&step_bytes()) };
    let parts = tokio_stream::iter([first]).chain(tokio_stream::pending());
    let refused = trial.client.put_checkpoint(parts).await.expect_err("nothing more comes");
    assert_eq!(refused.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn rows_that_are_kept_are_given_to_the_next_attempt() {
    let mut trial = Trial::start(PART_WITHIN).await;
    let bytes = step_bytes();
    let rows = trial.rows(&bytes);
    trial.client.put_checkpoint(tokio_stream::iter([rows])).await.expect("is taken");
    trial.farm.leave("b", trial.session).await;
    let (_, _orders) = trial.farm.join("c").await;
    let epoch = trial.farm.epoch(&trial.job).await;
    let asked = v1::GetCheckpointRequest { epoch: epoch.0, rank: 0, secret: trial.secret(epoch, "c") };
    let mut parts = trial.client.get_checkpoint(asked).await.expect("is there");
    let part = parts.get_mut().message().await.expect("it comes").expect("one part is enough");
    assert_eq!((part.n_steps_done, &part.chunk, part.crc32c), (2, &bytes, checksum::crc32c(&bytes)));
}

#[tokio::test]
async fn an_image_whose_checkpoint_is_lost_goes_back_to_the_newest_whole_one_and_is_not_blamed() {
    let mut trial = Trial::start(PART_WITHIN).await;
    let asked = v1::GetCheckpointRequest { epoch: trial.epoch.0, rank: 0, secret: trial.secret(trial.epoch, "b") };
    // Step 1 counted as kept, and its rows are nowhere.
    let lost = trial.client.get_checkpoint(asked).await.expect_err("nothing is there");
    assert_eq!(lost.code(), Code::FailedPrecondition);
    assert!(lost.message().contains("goes on from step 0"), "{}", lost.message());
    assert!(trial.farm.epoch(&trial.job).await > trial.epoch, "another attempt is on");
    let id = trial.job.clone();
    let image = trial.farm.desk.ask(move |control| control.job(&id).map(|job| job.images[0].clone()));
    let image = image.await.expect("the driver runs").expect("the job is known");
    assert_eq!((image.n_steps_done, image.n_failures), (0, 0));
}

#[tokio::test]
async fn nobody_but_the_worker_in_the_seat_hands_in_or_fetches_anything() {
    let mut trial = Trial::start(PART_WITHIN).await;
    let (bytes, epoch) = (step_bytes(), trial.epoch);
    let earlier = Epoch(epoch.0 - 1);
    let wrong = [Bytes::new(), Bytes::from(vec![0; 32]), trial.secret(epoch, "a"), trial.secret(earlier, "b")];
    for secret in wrong {
        let rows = v1::PutCheckpointRequest { secret: secret.clone(), ..trial.rows(&bytes) };
        let refused = trial.client.put_checkpoint(tokio_stream::iter([rows])).await.expect_err("is no seat's");
        assert_eq!(refused.code(), Code::PermissionDenied);
        let asked = v1::GetCheckpointRequest { epoch: epoch.0, rank: 0, secret: secret.clone() };
        let refused = trial.client.get_checkpoint(asked).await.expect_err("is no seat's");
        assert_eq!(refused.code(), Code::PermissionDenied);
        let artifact = Some(v1::Artifact { sha256: sha256(b"abcd"), size_bytes: 4, kind: 0 });
        let picture = v1::PutArtifactRequest { epoch: epoch.0, artifact, chunk: Bytes::from_static(b"abcd"), secret };
        let refused = trial.client.put_artifact(tokio_stream::iter([picture])).await.expect_err("is no seat's");
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    let other_rank = v1::PutCheckpointRequest { rank: 1, ..trial.rows(&bytes) };
    let refused = trial.client.put_checkpoint(tokio_stream::iter([other_rank])).await.expect_err("is no seat");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(trial.farm.metrics.strangers_refused(), 13);
    assert!(!trial.farm.artifacts.has(&sha256(b"abcd")).await);
    let rows = trial.rows(&bytes);
    trial.client.put_checkpoint(tokio_stream::iter([rows])).await.expect("the seat's own worker is let in");
}
