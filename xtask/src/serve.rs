//! `cargo xtask homeserver`: a server to play with.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use xtask::homeserver::{Options, SYNAPSE_VERSION, Synapse};

use crate::{HomeserverArgs, process::Interrupt};

/// When to look again whether the server is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &HomeserverArgs, interrupt: &Interrupt) -> anyhow::Result<ExitCode> {
    let options = Options {
        sticky: !args.no_sticky,
        delayed_events: !args.no_delayed_events,
        rate_limits: args.rate_limits,
        port: args.port,
        ..Options::default()
    };
    let Some(mut server) = start(options, interrupt)? else {
        return Ok(ExitCode::SUCCESS);
    };
    println!("Synapse {SYNAPSE_VERSION} at {}", server.url());
    for name in args.users.iter().map(|name| name.trim()).filter(|name| !name.is_empty()) {
        let user = server
            .register(name, &password(name))
            .with_context(|| format!("cannot make the user `{name}`"))?;
        println!("  {}, password {}", user.user_id, password(name));
    }
    println!("  log: {}", server.log().display());
    println!("Ctrl-C ends it and removes its data.");
    while !interrupt.came_within(LOOK_EVERY) {
        if !server.is_running() {
            bail!("the server ended by itself, or was ended from outside");
        }
    }
    eprintln!("stopping the server ..");
    server.stop()?;
    Ok(ExitCode::SUCCESS)
}

/// Starts a server; `None` if Ctrl-C came before it was up.
///
/// A start that is left alone ends with this process, as its pipe to it does.
pub(crate) fn start(options: Options, interrupt: &Interrupt) -> anyhow::Result<Option<Synapse>> {
    Ok(interrupt.or(move || Synapse::start(&options)).transpose()?)
}

/// The password of a user, for a server that nobody else can reach.
pub(crate) fn password(name: &str) -> String {
    format!("{name}-password")
}
