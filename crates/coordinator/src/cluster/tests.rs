//! What members send: checkpoints and pictures, too long, too slow, damaged.

use control::SessionId;
use plan::JobId;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use wire::v1::cluster_service_client::ClusterServiceClient;
use wire::v1::cluster_service_server::ClusterServiceServer;

use super::*;
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
        let (checkpoints, artifacts) = (Arc::clone(&farm.checkpoints), Arc::clone(&farm.artifacts));
        let members = Members::new(farm.desk.clone(), checkpoints, artifacts, farm.metrics.clone(), part_within);
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

    /// Hands in a picture of `bytes`, announced as `size_bytes` long, in parts.
    async fn hand_in(&mut self, size_bytes: u64, parts: &[&'static str]) -> Result<(), Status> {
        let sha256 = sha256(parts.concat().as_bytes());
        let mut announced = Some(v1::Artifact { sha256, size_bytes, kind: v1::ArtifactKind::Png8.into() });
        let part = |chunk: &&'static str| v1::PutArtifactRequest {
            epoch: self.epoch.0,
            artifact: announced.take(),
            chunk: Bytes::from_static(chunk.as_bytes()),
        };
        let parts: Vec<_> = parts.iter().map(part).collect();
        self.client.put_artifact(tokio_stream::iter(parts)).await.map(drop)
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_picture_longer_than_announced_is_not_taken() {
    let mut trial = Trial::start(PART_WITHIN).await;
    for parts in [vec!["abcd"], vec!["ab", "cd"], vec!["abc", "d"]] {
        let refused = trial.hand_in(3, &parts).await.expect_err("it is too long");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("more than the 3 bytes"), "{}", refused.message());
        assert!(trial.farm.artifacts.file(&sha256(b"abcd")).is_none());
    }
    trial.hand_in(4, &["ab", "cd"]).await.expect("it is as announced");
    assert!(trial.farm.artifacts.file(&sha256(b"abcd")).is_some());
}

#[tokio::test]
async fn a_sender_that_stops_amid_its_parts_is_hung_up_on() {
    let mut trial = Trial::start(Duration::from_millis(20)).await;
    let epoch = trial.epoch.0;
    let artifact = Some(v1::Artifact { sha256: sha256(b"abcd"), size_bytes: 4, kind: 0 });
    let first = v1::PutArtifactRequest { epoch, artifact, chunk: Bytes::from_static(b"ab") };
    let parts = tokio_stream::iter([first]).chain(tokio_stream::pending());
    let refused = trial.client.put_artifact(parts).await.expect_err("nothing more comes");
    assert_eq!(refused.code(), Code::DeadlineExceeded);

    let first = v1::PutCheckpointRequest { epoch, n_steps_done: 2, n_rows: 8, ..v1::PutCheckpointRequest::default() };
    let parts = tokio_stream::iter([first]).chain(tokio_stream::pending());
    let refused = trial.client.put_checkpoint(parts).await.expect_err("nothing more comes");
    assert_eq!(refused.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn rows_that_are_kept_are_given_to_the_next_attempt_and_others_are_said_to_be_lost() {
    let mut trial = Trial::start(PART_WITHIN).await;
    let asked = v1::GetCheckpointRequest { epoch: trial.epoch.0 };
    // Step 1 counted as kept, and its rows are nowhere.
    let lost = trial.client.get_checkpoint(asked).await.expect_err("nothing is there");
    assert_eq!(lost.code(), Code::DataLoss);
    let way_out = format!("`fresco retry {}` begins it anew", trial.job);
    assert!(lost.message().contains("behind step 1 is gone or damaged"), "{}", lost.message());
    assert!(lost.message().ends_with(&way_out), "{}", lost.message());

    let bytes: Bytes = (0..2 * 4 * 8 * 8 * 4_u32).map(|idx| idx as u8).collect::<Vec<u8>>().into();
    let rows = v1::PutCheckpointRequest {
        epoch: trial.epoch.0,
        n_steps_done: 2,
        n_rows: 8,
        crc32c: checksum::crc32c(&bytes),
        chunk: bytes.clone(),
        ..v1::PutCheckpointRequest::default()
    };
    trial.client.put_checkpoint(tokio_stream::iter([rows])).await.expect("is taken");
    trial.farm.leave("b", trial.session).await;
    let (_, _orders) = trial.farm.join("c").await;
    let epoch = trial.farm.epoch(&trial.job).await;
    let mut parts = trial.client.get_checkpoint(v1::GetCheckpointRequest { epoch: epoch.0 }).await.expect("is there");
    let part = parts.get_mut().message().await.expect("it comes").expect("one part is enough");
    assert_eq!((part.n_steps_done, &part.chunk, part.crc32c), (2, &bytes, checksum::crc32c(&bytes)));
}
