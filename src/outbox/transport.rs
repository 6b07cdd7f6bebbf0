//! Requests by the reqwest client beneath matrix-sdk's HTTP client.
//!
//! Why not by matrix-sdk's client itself? It logs the path of a request, and a delay id stands in
//! the path. And it refreshes a token in the middle of a request, which then goes out again however late that
//! is: nothing of a heartbeat may land after its time.

use std::{future::IntoFuture as _, time::Duration};

use matrix_sdk::reqwest::{self, Method};
use ruma::api::client::account::whoami;

use super::{Answer, Outbox, RequestError};
use crate::{
    driver::{before, to_its_end},
    request::{describe_network, one_try},
    time::Deadline,
};

/// How long a refresh of the access token may take.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(60);

/// A request to the server. It has no `Debug`: its path may have a delay id.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    /// Below `/_matrix/client`.
    pub(crate) path: Vec<&'a str>,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) body: Option<String>,
    pub(crate) auth: Auth,
}

/// Whether a request needs an access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auth {
    /// It goes out with an access token only.
    Needed,
    /// It goes out with an access token if there is a valid one.
    Optional,
}

impl<'a> Request<'a> {
    /// A question that changes nothing.
    pub(crate) fn get(path: Vec<&'a str>, auth: Auth) -> Self {
        Self { method: Method::GET, path, query: Vec::new(), body: None, auth }
    }
}

impl Outbox {
    /// Asks once. It asks once more with a new access token, if the old one has run out and matrix-sdk
    /// could refresh it; and without any, if none is needed.
    ///
    /// Why a token for requests that need none? The newest text of MSC4140 asks for it. And Synapse,
    /// which does not, counts its rate limit by user if there is one, and else by address, which all
    /// users behind a NAT share.
    pub(crate) async fn ask(
        &self,
        request: &Request<'_>,
        deadline: Deadline,
    ) -> Result<Answer, RequestError> {
        let token = self.client.access_token();
        if token.is_none() && request.auth == Auth::Needed {
            return Err(RequestError::NotLoggedIn);
        }
        let mut answer = self.ask_with(request, token.as_deref(), deadline).await?;
        if !answer.is_about_the_token() || token.is_none() {
            return Ok(answer);
        }
        if self.client.access_token() == token {
            // Any request of matrix-sdk's own makes it refresh the token, or tell the application to
            // do so, as the application has set it up. That goes on if our time is over first: a
            // server may have taken back the old refresh token by then.
            let whoami = self.client.send(whoami::v3::Request::new());
            let whoami = whoami.with_request_config(one_try(REFRESH_TIMEOUT)).into_future();
            let refreshed = to_its_end(REFRESH_TIMEOUT, whoami);
            let _ = before(&*self.timer, deadline, refreshed).await;
        }
        let refreshed = self.client.access_token();
        if refreshed.is_some() && refreshed != token {
            answer = self.ask_with(request, refreshed.as_deref(), deadline).await?;
        }
        if answer.is_about_the_token() && request.auth == Auth::Optional {
            answer = self.ask_with(request, None, deadline).await?;
        }
        Ok(answer)
    }

    /// Makes one request. It ends at the deadline, on the clock that goes on while the machine
    /// sleeps, so that no request goes out late.
    async fn ask_with(
        &self,
        request: &Request<'_>,
        token: Option<&str>,
        deadline: Deadline,
    ) -> Result<Answer, RequestError> {
        let left = self.left(deadline);
        if left.is_zero() {
            let error = "the time was over before the server could be asked";
            return Err(RequestError::not_sent(error));
        }
        let mut url = self.client.homeserver();
        url.path_segments_mut()
            .map_err(|()| RequestError::not_sent("the homeserver's URL has no place for a path"))?
            .pop_if_empty()
            .extend(["_matrix", "client"])
            .extend(&request.path);
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        let mut builder =
            self.client.http_client().request(request.method.clone(), url).timeout(left);
        if let Some(token) = token {
            builder = builder.bearer_auth(token);
        }
        if let Some(body) = &request.body {
            builder = builder.header("content-type", "application/json").body(body.clone());
        }
        let answered = async {
            let response = builder.send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = response.bytes().await?;
            Ok(Answer::new(status, &headers, body.to_vec()))
        };
        match before(&*self.timer, deadline, answered).await {
            None => Err(RequestError::Unreachable {
                error: "no answer in time".to_owned(),
                may_have_happened: true,
            }),
            Some(answer) => answer.map_err(|error| no_answer(&error)),
        }
    }
}

fn no_answer(error: &reqwest::Error) -> RequestError {
    RequestError::Unreachable {
        error: describe_network(error),
        // Without a connection nothing was sent.
        may_have_happened: !error.is_connect() && !error.is_builder(),
    }
}
