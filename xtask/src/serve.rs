//! `cargo xtask homeserver`: a server to play with.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use serde_json::json;
use xtask::{
    api::{Api, ApiError},
    homeserver::{Options, SYNAPSE_VERSION, Synapse},
};

use crate::{HomeserverArgs, cargo::Cargo, process::Interrupt};

/// When to look again whether the server is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The rooms that everybody is in, by the names of their aliases: one in plaintext, one encrypted.
const ROOMS: [(&str, &str); 2] = [("play", ""), ("secret", ", encrypted")];

pub(crate) fn run(
    args: &HomeserverArgs,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
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
    let names = args.users.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
    let names: Vec<&str> = names.collect();
    let mut users = Vec::new();
    for name in &names {
        let user = server
            .register(name, &password(name))
            .with_context(|| format!("cannot make the user `{name}`"))?;
        println!("  {}, password {}", user.user_id, password(name));
        users.push(server.api(&user));
    }
    make_rooms(&users).context("cannot make the rooms")?;
    if let [first, ..] = names[..] {
        for (alias, encrypted) in ROOMS {
            println!("  #{alias}:{}{encrypted}, with all of them in it", server.name());
        }
        print_examples(&server, cargo.run_words(), first, names.get(1).copied().unwrap_or(first));
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

/// The first user makes the rooms, and the others join.
fn make_rooms(users: &[Api]) -> Result<(), ApiError> {
    let Some((first, others)) = users.split_first() else { return Ok(()) };
    for (alias, encrypted) in ROOMS {
        let mut room = json!({ "name": alias, "preset": "public_chat", "room_alias_name": alias });
        if !encrypted.is_empty() {
            room["initial_state"] = json!([{
                "type": "m.room.encryption",
                "state_key": "",
                "content": { "algorithm": "m.megolm.v1.aes-sha2" },
            }]);
        }
        let room_id = first.create_room(&room)?;
        others.iter().try_for_each(|other| other.join(&room_id))?;
    }
    Ok(())
}

/// Says how to watch a room and how to send something there, in lines that can be pasted into a shell.
fn print_examples(server: &Synapse, run: &str, watcher: &str, sender: &str) {
    let account = |example: &str, user: &str| {
        format!(
            "  {run} --example {example} -- --homeserver {} --username {user} --password {}",
            server.url(),
            password(user)
        )
    };
    let room = format!("--room '#play:{}'", server.name());
    println!("Watch a room:\n{} {room}", account("watch", watcher));
    println!(
        "Send something there, from another terminal:\n{} {room} --type com.example.status \
         --key laptop --content '{{\"status\":\"here\"}}' --sticky 600",
        account("send", sender)
    );
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
