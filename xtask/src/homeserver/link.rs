//! The way by which other homeservers reach one, and that can be cut.
//!
//! In: connections to a port on loopback. Out: the same bytes, at the server's own port; or nothing,
//! while the link is cut. Dropping it ends it.

use std::{
    fmt, io,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

/// A relay in front of a server's port for other servers.
pub struct Link {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    is_over: bool,
    /// Both ends of each connection.
    open: Vec<TcpStream>,
}

impl Link {
    /// Listens on `port`, and passes on to the port `to`.
    pub(super) fn start(port: u16, to: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let link = Self { port, state: Arc::default() };
        let state = link.state.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut state = lock(&state);
                if state.is_over {
                    return;
                }
                // Closed at once.
                if state.is_cut {
                    continue;
                }
                let _ = client.and_then(|client| state.open(client, to));
            }
        });
        Ok(link)
    }

    /// Cuts all connections, and each new one at once.
    pub fn cut(&self) {
        let mut state = lock(&self.state);
        state.is_cut = true;
        state.close();
    }

    /// Lets connections pass again.
    pub fn mend(&self) {
        lock(&self.state).is_cut = false;
    }
}

impl State {
    fn open(&mut self, client: TcpStream, to: u16) -> io::Result<()> {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
        for (mut from, mut into) in
            [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)]
        {
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut into);
                let _ = into.shutdown(Shutdown::Write);
            });
        }
        self.open.extend([client, server]);
        Ok(())
    }

    fn close(&mut self) {
        for stream in self.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.state);
            state.is_over = true;
            state.close();
        }
        // Wakes the thread that waits for the next connection.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_cut = lock(&self.state).is_cut;
        f.debug_struct("Link").field("port", &self.port).field("is_cut", &is_cut).finish()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
