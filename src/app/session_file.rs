//! A session in a file, so that the next start is the same device.
//!
//! In: a client that logs in. Out: the client with its session of the last run. Never: a password,
//! or a token in a log or an error.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use matrix_sdk::{Client, SessionMeta, authentication::matrix::MatrixSession};

/// The file that keeps a session from one start to the next.
///
/// A persistent store alone is not enough: each login makes a new device, and a store belongs to one
/// device. So log in once, [`save`](Self::save) the session, and [`restore`](Self::restore) it at
/// each later start.
///
/// The file has the access token in it, and the refresh token. On Unix nobody else may read it (mode
/// 0600). It is written beside the old one and renamed over it, so it is complete at every moment,
/// also if the process is killed meanwhile.
///
/// It keeps sessions of matrix-sdk's [`matrix_auth`](Client::matrix_auth): password, SSO, token.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: matrix_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use matrix_sdk_sticky::app::SessionFile;
///
/// // Beside the stores of the same device.
/// let session = SessionFile::new("data/session.json");
/// if session.restore(&client).await?.is_none() {
///     client.matrix_auth().login_username("alice", "a password").send().await?;
///     session.save(&client)?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFile {
    path: PathBuf,
}

impl SessionFile {
    /// Names the file. Nothing is read or written yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Restores the session that the file has, and has the client write each new pair of tokens
    /// there. Returns whose session it is, or `None` if there is no file: then log in, and
    /// [`save`](Self::save).
    ///
    /// Call it once for each client, before the login. Access tokens run out only if the server gave
    /// a refresh token too, which takes `request_refresh_token()` at the login and
    /// [`handle_refresh_tokens`](matrix_sdk::ClientBuilder::handle_refresh_tokens) on the client's
    /// builder.
    ///
    /// Why not subscribe to the changes of the session? The first use of a new token makes the server
    /// forget the old pair. A process that is killed between that use and the subscriber's write could
    /// never log in again. So the file is written before the client uses the new pair.
    ///
    /// # Errors
    ///
    /// [`SessionFileError`]. Nothing was restored then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave the client half restored. Make a new client.
    pub async fn restore(&self, client: &Client) -> Result<Option<SessionMeta>, SessionFileError> {
        let (reload, save) = (self.clone(), self.clone());
        client
            .set_session_callbacks(
                Box::new(move |_| match reload.read()? {
                    Some(session) => Ok(session.tokens),
                    None => Err(SessionFileError::Gone { path: reload.path.clone() }.into()),
                }),
                Box::new(move |client| Ok(save.save(&client)?)),
            )
            .map_err(SessionFileError::sdk)?;
        let Some(session) = self.read()? else { return Ok(None) };
        let meta = session.meta.clone();
        client.restore_session(session).await.map_err(SessionFileError::sdk)?;
        Ok(Some(meta))
    }

    /// Writes the client's session, after the login. Makes the folder if it is missing.
    ///
    /// # Errors
    ///
    /// [`SessionFileError`]. An earlier file is as it was.
    pub fn save(&self, client: &Client) -> Result<(), SessionFileError> {
        let Some(session) = client.matrix_auth().session() else {
            return Err(match client.session_meta() {
                None => SessionFileError::NotLoggedIn,
                Some(_) => SessionFileError::OtherKind,
            });
        };
        let content = serde_json::to_vec(&session)
            .map_err(|source| SessionFileError::Malformed { path: self.path.clone(), source })?;
        self.write(&content).map_err(|source| self.io("write", source))
    }

    /// Removes the file, after a logout. A file that is not there is no error.
    ///
    /// # Errors
    ///
    /// [`SessionFileError::Io`].
    pub fn remove(&self) -> Result<(), SessionFileError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io("remove", error)),
            _ => Ok(()),
        }
    }

    fn read(&self) -> Result<Option<MatrixSession>, SessionFileError> {
        let content = match fs::read(&self.path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("read", error)),
        };
        serde_json::from_slice(&content)
            .map(Some)
            .map_err(|source| SessionFileError::Malformed { path: self.path.clone(), source })
    }

    fn write(&self, content: &[u8]) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let unfinished = self.path.with_added_extension("unfinished");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&unfinished)?;
        file.write_all(content)?;
        // A machine that loses its power must not keep the new name and the old content.
        file.sync_all()?;
        fs::rename(unfinished, &self.path)
    }

    fn io(&self, verb: &'static str, source: io::Error) -> SessionFileError {
        SessionFileError::Io { verb, path: self.path.clone(), source }
    }
}

/// Why a session was not kept, or not found again. No text has a token in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionFileError {
    /// The file cannot be read, written or removed. Check its folder and its rights.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "write" or "remove".
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is there, and has no session in it. Remove it together with the stores, and log in
    /// again.
    #[error("{} has no session in it: remove it and the stores beside it, and log in again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says. It names a place in the file, and no content.
        source: serde_json::Error,
    },
    /// Somebody has removed the file while the client was running.
    #[error("{} is gone: save the session again", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// The client has no session. Log in before saving it.
    #[error("the client is not logged in: log in before the session is saved")]
    NotLoggedIn,
    /// The session is one of OAuth, which has more to it than this file keeps. Store what
    /// [`Client::oauth`] gives.
    #[error("this file keeps no OAuth sessions: store what `Client::oauth` gives")]
    OtherKind,
    /// matrix-sdk does not take the session: the client has one already, its callbacks are set
    /// already, or its store belongs to another device.
    #[error("matrix-sdk does not take the session: {source}")]
    Sdk {
        /// matrix-sdk's reason.
        source: Box<matrix_sdk::Error>,
    },
}

impl SessionFileError {
    fn sdk(error: matrix_sdk::Error) -> Self {
        Self::Sdk { source: Box::new(error) }
    }
}
