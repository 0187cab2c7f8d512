//! Which requests are open on which connection: from their arrival to the end of their answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tower::{Layer, Service};

use super::{ConnectionInfo, Usage};

/// Counts the requests of each connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CountRequests;

/// A service whose requests are counted.
#[derive(Debug, Clone)]
pub(crate) struct Counted<S>(S);

/// One request that is open.
pub(super) struct Open(Arc<Usage>);

impl Usage {
    /// A request came.
    pub(super) fn open(self: &Arc<Self>) -> Open {
        let mut state = self.state();
        state.n_open += 1;
        state.has_asked = true;
        Open(Arc::clone(self))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.n_open -= 1;
        state.since = Instant::now();
    }
}

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted(inner)
    }
}

impl<S, I, O> Service<Request<I>> for Counted<S>
where
    S: Service<Request<I>, Response = Response<O>>,
    S::Future: Send + 'static,
{
    type Response = Response<Answer<O>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<I>) -> Self::Future {
        let info = request.extensions().get::<ConnectionInfo>().cloned();
        let open = info.map(|ConnectionInfo { tcp, usage }| {
            // Where the services look for addresses.
            request.extensions_mut().insert(tcp);
            usage.open()
        });
        let answering = self.0.call(request);
        Box::pin(async move { Ok(answering.await?.map(|body| Answer { body, _open: open })) })
    }
}

/// An answer, whose request is open as long as it is.
pub(crate) struct Answer<B> {
    body: B,
    _open: Option<Open>,
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
