//! The files that a Synapse starts from. In go the [`Options`] and where things lie; out come
//! `homeserver.yaml`, the log's configuration and a signing key. Nothing is started here.

use std::{fs, hash::BuildHasher as _, io, path::Path, time::Duration};

use serde_json::{Value, json};

use super::Options;

/// The name of the server in user and room ids. Without a port, so that it stays on a restart.
pub(super) const SERVER_NAME: &str = "sticky.test";

/// The certificate and the key for other servers, inside the data directory.
pub(super) const CERTIFICATE: &str = "tls.crt";
pub(super) const TLS_KEY: &str = "tls.key";

/// Where other servers reach one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Federation {
    /// Where it listens.
    pub(super) port: u16,
    /// What its name says: the port of the link in front of it.
    pub(super) reached_by: u16,
}

/// Synapse's own log, inside the data directory.
pub(super) const LOG: &str = "homeserver.log";

/// A rate that nobody reaches: 10,000 a second, in bursts of as many.
fn lifted() -> Value {
    json!({ "per_second": 10_000, "burst_count": 10_000 })
}

/// A duration as Synapse reads a number.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writes all configuration into `dir`. YAML is a superset of JSON, so JSON is what is written. Returns
/// the server's name.
pub(super) fn write(
    dir: &Path,
    port: u16,
    federation: Option<Federation>,
    options: &Options,
) -> io::Result<String> {
    let mut config = homeserver(dir, port, options);
    let mut name = SERVER_NAME.to_owned();
    if let Some(Federation { port, reached_by }) = federation {
        name = format!("localhost:{reached_by}");
        config["server_name"] = json!(name);
        federate(&mut config, dir, port);
    }
    fs::write(dir.join("homeserver.yaml"), config.to_string())?;
    fs::write(dir.join("log.yaml"), log(dir).to_string())?;
    fs::write(dir.join("signing.key"), signing_key())?;
    Ok(name)
}

/// Has the server listen to others, which are on loopback and sign their certificates themselves.
fn federate(config: &mut Value, dir: &Path, port: u16) {
    if let Some(listeners) = config["listeners"].as_array_mut() {
        listeners.push(json!({
            "port": port,
            "bind_addresses": ["127.0.0.1"],
            "type": "http",
            "tls": true,
            "resources": [{ "names": ["federation"], "compress": false }],
        }));
    }
    config["federation_domain_whitelist"] = Value::Null;
    config["tls_certificate_path"] = json!(dir.join(CERTIFICATE));
    config["tls_private_key_path"] = json!(dir.join(TLS_KEY));
    config["federation_verify_certificates"] = json!(false);
    config["ip_range_blacklist"] = json!([]);
    // A link that was cut is tried again soon.
    config["federation"] = json!({
        "destination_min_retry_interval": "1s",
        "destination_retry_multiplier": 1,
        "destination_max_retry_interval": "2s",
    });
}

fn homeserver(dir: &Path, port: u16, options: &Options) -> Value {
    let mut config = json!({
        "server_name": SERVER_NAME,
        "public_baseurl": format!("http://127.0.0.1:{port}/"),
        "listeners": [{
            "port": port,
            "bind_addresses": ["127.0.0.1"],
            "type": "http",
            "tls": false,
            "resources": [{ "names": ["client"], "compress": false }],
        }],
        "pid_file": dir.join("homeserver.pid"),
        "log_config": dir.join("log.yaml"),
        "media_store_path": dir.join("media"),
        "signing_key_path": dir.join("signing.key"),
        "database": { "name": "sqlite3", "args": { "database": dir.join("homeserver.db") } },
        "report_stats": false,
        "trusted_key_servers": [],
        "suppress_key_server_warning": true,
        "federation_domain_whitelist": [],
        "enable_registration": true,
        "enable_registration_without_verification": true,
        // They guard nothing: the server listens on loopback and lives as long as a test.
        "macaroon_secret_key": "of a test server",
        "form_secret": "of a test server",
        // The least that bcrypt takes; at the default of 12 a log-in costs a quarter of a second.
        "bcrypt_rounds": 4,
        // Without a lifetime there are no refresh tokens at all.
        "refreshable_access_token_lifetime": options.token_lifetime.map(milliseconds),
        "presence": { "enabled": false },
        "stats": { "enabled": false },
        "url_preview_enabled": false,
        "background_updates": { "sleep_enabled": false },
        "experimental_features": {
            "msc4354_enabled": options.sticky,
            "msc4140_max_delayed_events_per_user": 100,
        },
    });
    let transports = json!([
        { "type": "livekit", "livekit_service_url": "https://livekit.sticky.test", "com.example.odd": [1] },
        { "type": "com.example.pigeon", "loft": { "height": 3 } },
    ]);
    if options.rtc_endpoint {
        config["experimental_features"]["msc4143_enabled"] = json!(true);
    }
    if options.rtc_transports && options.rtc_endpoint {
        config["matrix_rtc"] = json!({ "transports": transports });
    } else if options.rtc_transports {
        config["extra_well_known_client_content"] =
            json!({ "org.matrix.msc4143.rtc_foci": transports });
    }
    if options.delayed_events {
        config["max_event_delay_duration"] = json!("24h");
    }
    // All logins are those of the tests.
    config["rc_login"] =
        json!({ "address": lifted(), "account": lifted(), "failed_attempts": lifted() });
    if !options.rate_limits {
        for limit in [
            "rc_message",
            "rc_registration",
            "rc_registration_token_validity",
            "rc_admin_redaction",
            "rc_3pid_validation",
            "rc_third_party_invite",
            "rc_media_create",
            "rc_delayed_event_mgmt",
            "rc_key_requests",
            "rc_reports",
            "rc_room_creation",
            "rc_user_directory",
            "rc_profile",
        ] {
            config[limit] = lifted();
        }
        config["rc_joins"] = json!({ "local": lifted(), "remote": lifted() });
        config["rc_joins_per_room"] = lifted();
        config["rc_invites"] =
            json!({ "per_room": lifted(), "per_user": lifted(), "per_issuer": lifted() });
        config["rc_presence"] = json!({ "per_user": lifted() });
    }
    config
}

fn log(dir: &Path) -> Value {
    json!({
        "version": 1,
        "formatters": { "short": { "format": "%(asctime)s %(levelname)s %(name)s: %(message)s" } },
        "handlers": {
            "file": {
                "class": "logging.FileHandler",
                "filename": dir.join(LOG),
                "formatter": "short",
            },
        },
        // INFO of the start only: "now listening" is what tells that *our* server is up.
        "loggers": { "synapse.app": { "level": "INFO" } },
        "root": { "level": "WARNING", "handlers": ["file"] },
        "disable_existing_loggers": false,
    })
}

/// A fresh ed25519 key: 32 bytes in unpadded base64, of which hexadecimal digits are a subset.
fn signing_key() -> String {
    let random = || std::hash::RandomState::new().hash_one(());
    let digits: String = (0..3).map(|_| format!("{:016x}", random())).collect();
    format!("ed25519 a_test {}A\n", digits.get(..42).unwrap_or(&digits))
}
