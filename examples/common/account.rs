//! The account on the command line, and how an example logs in with it.

use std::{error::Error, path::Path, time::Duration};

use matrix_sdk::{Client, HttpError, config::RequestConfig};
use matrix_sdk_sticky::{BaseClientBuilder, app::SessionFile};
use tokio::time::timeout;

use super::{Result, fail};

/// When to give up on a server that does not answer `/versions`, or the login.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The user whom a program acts for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Account {
    /// The homeserver's URL, e.g. https://matrix.example.org
    #[arg(long, value_name = "URL")]
    homeserver: String,
    /// The user's name, or full id.
    #[arg(long, value_name = "U")]
    username: String,
    /// The password; without it, the environment's MATRIX_PASSWORD.
    #[arg(long, value_name = "P")]
    password: Option<String>,
}

impl Account {
    /// Logs in. With a folder, the device is the one of the last start.
    pub(super) async fn log_in(&self, device_name: &str, store: Option<&Path>) -> Result<Client> {
        let client = self.client(store).await?;
        let Some(folder) = store else {
            self.log_in_with_password(&client, device_name).await?;
            return Ok(client);
        };
        let session = SessionFile::new(folder.join("session.json"));
        if session.restore(&client).await?.is_none() {
            self.log_in_with_password(&client, device_name).await?;
            session.save(&client)?;
        }
        Ok(client)
    }

    /// Makes a client that can encrypt what it sends, and sees whether its homeserver is one.
    async fn client(&self, store: Option<&Path>) -> Result<Client> {
        let url = &self.homeserver;
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return fail(format!(
                "{url} is no homeserver's URL: it begins with https:// or http://"
            ));
        }
        let builder = Client::builder()
            .homeserver_url(url)
            // The one that was asked for, whatever the response to the login recommends.
            .respect_login_well_known(false)
            // If access tokens run out, the client gets new ones by itself.
            .handle_refresh_tokens()
            // A person who starts a program wants to hear what is wrong, and not to wait while it
            // tries again.
            .request_config(RequestConfig::new().disable_retry());
        let base = match store {
            Some(folder) => {
                std::fs::create_dir_all(folder)
                    .map_err(|error| format!("{} is no folder: {error}", folder.display()))?;
                BaseClientBuilder::sqlite(folder, None)
            }
            None => BaseClientBuilder::in_memory(),
        };
        let client = base
            .build_client(builder)
            .await
            .map_err(|error| format!("{url} is no homeserver's URL: {}", with_causes(&error)))?;

        let config = RequestConfig::new().disable_retry().timeout(ANSWER_WITHIN);
        client
            .fetch_server_versions(Some(config))
            .await
            .map_err(|error| why_no_homeserver(url, &error))?;
        Ok(client)
    }

    async fn log_in_with_password(&self, client: &Client, device_name: &str) -> Result {
        let Self { homeserver: url, username, password } = self;
        let password = match password {
            Some(password) => password.clone(),
            None => std::env::var("MATRIX_PASSWORD").map_err(
                |_| "a password is needed: --password, or MATRIX_PASSWORD in the environment",
            )?,
        };
        let login = client
            .matrix_auth()
            .login_username(username, &password)
            .initial_device_display_name(device_name)
            // A server without refresh tokens gives an access token that does not run out.
            .request_refresh_token()
            .send();
        timeout(ANSWER_WITHIN, login)
            .await
            .map_err(|_| format!("{url} cannot be reached: no answer to the login"))?
            .map_err(|error| match error.as_client_api_error() {
                Some(refusal) => format!("{url} refused to log {username} in: {refusal}"),
                None => format!("logging in on {url} failed: {}", with_causes(&error)),
            })?;
        Ok(())
    }
}

fn why_no_homeserver(url: &str, error: &HttpError) -> String {
    match error {
        HttpError::Reqwest(error) if error.is_timeout() => {
            format!("{url} cannot be reached: no answer within {} s", ANSWER_WITHIN.as_secs())
        }
        HttpError::Reqwest(error) if error.is_connect() => {
            format!("{url} cannot be reached: {}", with_causes(error))
        }
        _ => match error.as_client_api_error() {
            Some(answer) if answer.status_code.is_server_error() => {
                format!("{url} is out of order: {answer}")
            }
            _ => format!("{url} is no Matrix homeserver: {}", with_causes(error)),
        },
    }
}

/// Returns the text of an error and of its causes, because reqwest's errors say little by themselves.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
