//! Redirects, pages and login pages that lead elsewhere, and secrets that must not go there.

use std::fs;

use serde_json::json;
use softlm::hub::{HubOptions, dataset_file, model};

use super::server::{COMMIT, Fault, Hub, demo, entry, logged};
use super::{assert_demo, message};

#[test]
fn the_token_stays_with_the_endpoint() {
    let elsewhere = Hub::with_demo();
    let address = elsewhere.endpoint.strip_prefix("http:").unwrap().to_owned();
    for location in [
        format!("http:{address}/elsewhere/ours/demo/config.json"),
        format!("{address}/elsewhere/ours/demo/config.json"),
        format!("/\\{}/elsewhere/ours/demo/config.json", address.trim_start_matches('/')),
        format!("http://me:pw@{}/elsewhere/ours/demo/config.json", address.trim_start_matches('/')),
    ] {
        let hub = Hub::with_demo();
        hub.always("GET", "/resolve/0123456789abcdef0123456789abcdef01234567/config.json", Fault::redirect(&location));
        let options = HubOptions { token: Some("hf_secret".into()), ..hub.options() };
        let before = elsewhere.requests();
        assert_demo(&model("ours/demo", &options).unwrap().dir);
        let seen = &elsewhere.state.lock().unwrap().seen;
        assert_eq!(seen.len(), before + 1, "{location}");
        assert!(seen.iter().all(|seen| seen.authorization.is_none()), "{location}");
    }
    // On the same server it goes along; once elsewhere, it does not come back.
    let hub = Hub::with_demo();
    hub.fault("GET", "/config.json", Fault::redirect("/elsewhere/ours/demo/config.json"));
    hub.fault("GET", "/tokenizer.json", Fault::redirect(&format!("{}/back", elsewhere.endpoint)));
    elsewhere.fault("GET", "/back", Fault::redirect(&format!("{}/elsewhere/ours/demo/tokenizer.json", hub.endpoint)));
    let options = HubOptions { token: Some("hf_secret".into()), ..hub.options() };
    assert_demo(&model("ours/demo", &options).unwrap().dir);
    let state = hub.state.lock().unwrap();
    let sent = |path: &str| state.seen.iter().find(|seen| seen.path == path).unwrap().authorization.is_some();
    assert!(sent("/elsewhere/ours/demo/config.json") && !sent("/elsewhere/ours/demo/tokenizer.json"));
}

#[test]
fn redirects_have_an_end_and_stay_on_the_web() {
    let hub = Hub::with_demo();
    hub.always("GET", "/revision/main", Fault::redirect("/api/models/ours/demo/revision/main"));
    assert!(message(model("ours/demo", &hub.options())).contains("again and again"));
    assert_eq!(hub.requests(), 11);
    for location in ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:text/plain,x", "http://"] {
        let hub = Hub::with_demo();
        hub.always("GET", "/config.json", Fault::redirect(location));
        assert!(message(model("ours/demo", &hub.options())).contains("redirects to what is no"), "{location}");
    }
    let hub = Hub::start();
    hub.put("datasets/ours/set", "x.parquet", b"rows");
    hub.always("POST", COMMIT, Fault::redirect("http://localhost:1/x"));
    let said = message(dataset_file("ours/set", "x.parquet", "main", &hub.options()));
    assert!(said.contains("that only it can answer"), "{said}");
}

#[test]
fn a_listing_has_pages_on_its_own_server_only() {
    let hub = Hub::with_demo();
    let items: Vec<_> = demo().iter().map(|(path, content)| entry(path, content)).collect();
    let page = |next: &str, items: &[serde_json::Value]| {
        let link = format!("<{next}>; rel=\"next\"");
        Fault::Reply(200, vec![("Link", link)], json!(items).to_string().into_bytes())
    };
    let tree = format!("/tree/{COMMIT}");
    hub.fault("GET", &tree, page("/api/models/ours/demo/second", &items[..2]));
    hub.fault("GET", "/second", page(&format!("{}/third", hub.endpoint), &items[2..3]));
    hub.fault("GET", "/third", Fault::json(json!(items[3..])));
    assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);

    let elsewhere = Hub::start();
    for next in [format!("{}/x", elsewhere.endpoint), elsewhere.endpoint.replace("http:", ""), "file:///x".into()] {
        hub.fault("GET", &tree, page(&next, &items));
        let options = HubOptions { token: Some("hf_secret".into()), ..hub.options() };
        let said = message(model("ours/demo", &options));
        assert!(said.contains("on another server"), "{said}");
    }
    assert_eq!(elsewhere.requests(), 0);
    let hub = Hub::with_demo();
    hub.always("GET", &tree, page(&format!("{}{tree}", hub.endpoint), &[]));
    assert!(message(model("ours/demo", &hub.options())).contains("without end"));
    let hub = Hub::with_demo();
    hub.always("GET", &tree, Fault::Reply(200, vec![], vec![b' '; 65 << 20]));
    assert!(message(model("ours/demo", &hub.options())).contains("more than 64 MB of JSON"));
}

#[test]
fn a_login_page_is_not_taken_for_data() {
    let html = "<!DOCTYPE html><title>Welcome</title>";
    let page = Fault::page(200, &[("Content-Type", "text/html; charset=utf-8")], html);
    let unnamed = Fault::page(200, &[("Content-Type", "application/json")], html);
    let portal = Hub::start();
    portal.always("GET", "/login", page.clone());
    let away = Fault::redirect(&format!("{}/login", portal.endpoint));
    for (path, fault) in [
        ("/revision/main", page.clone()),
        ("/revision/main", unnamed.clone()),
        ("/revision/main", away.clone()),
        ("/revision/main", Fault::Status(511)),
        (COMMIT, page.clone()),
        (COMMIT, away.clone()),
        ("/model.safetensors", page),
        ("/tokenizer.json", away),
    ] {
        let hub = Hub::with_demo();
        hub.always("GET", path, fault);
        let said = message(model("ours/demo", &hub.options()));
        assert!(said.contains("web page") && said.contains("log in"), "{path}: {said}");
        assert_eq!(hub.count("GET", path), 1, "{path}: not again");
        hub.heal();
        assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
        hub.always("GET", "/revision/main", unnamed.clone());
        assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
    }
    let hub = Hub::with_demo();
    hub.always("GET", "/revision/main", Fault::page(200, &[], "no JSON"));
    assert!(message(model("ours/demo", &hub.options())).contains("not the hub's JSON"));
    let hub = Hub::with_demo();
    hub.always("GET", "/config.json", Fault::page(200, &[("Content-Encoding", "gzip")], "x"));
    assert!(message(model("ours/demo", &hub.options())).contains("compressed"));
}

#[test]
fn secrets_are_checked_before_any_request_and_never_shown() {
    let hub = Hub::with_demo();
    for token in ["hf_\nxyzzy", "hf_ xyzzy", "hf_xyzzy\u{e9}", "xyzzy\r\nHost: xyzzy"] {
        let options = HubOptions { token: Some(token.into()), ..hub.options() };
        let error = model("ours/demo", &options).unwrap_err();
        assert!(error.to_string().contains("access token") && !format!("{error:?}").contains("xyzzy"), "{error:?}");
    }
    assert_eq!(hub.requests(), 0);
    let options = HubOptions { token: Some("hf_right\r\n".into()), ..hub.options() };
    assert_demo(&model("ours/demo", &options).unwrap().dir);
    let file = hub.cache().join("token");
    fs::write(&file, "hf_file\n").unwrap();
    let options = HubOptions { token_file: Some(file), ..hub.options() };
    model("ours/demo", &options).unwrap();
    let last = |hub: &Hub| hub.state.lock().unwrap().seen.last().unwrap().authorization.clone();
    assert_eq!(last(&hub).as_deref(), Some("Bearer hf_file"));

    let endpoint = hub.endpoint.replace("http://", "http://me:hunter2@");
    let (options, lines) = logged(HubOptions { endpoint: Some(endpoint), ..hub.options() });
    model("ours/demo", &options).unwrap();
    assert_eq!(last(&hub).as_deref(), Some("Basic bWU6aHVudGVyMg=="));
    hub.fault("GET", "/revision/main", Fault::Status(503));
    hub.fault("GET", "/revision/main", Fault::Drop);
    let missing = format!("{:?}", model("ours/missing", &options).unwrap_err());
    hub.heal();
    for fault in
        [Fault::Drop, Fault::Status(500), Fault::Status(403), Fault::redirect("file:///x"), Fault::page(200, &[], "<")]
    {
        hub.always("GET", "/revision/main", fault);
        let error = format!("{:?}", model("ours/other", &options).unwrap_err());
        assert!(!error.contains("hunter2") && error.contains("127.0.0.1"), "{error}");
        hub.heal();
    }
    let lines = lines.lock().unwrap().join("\n");
    assert!(!(lines + &missing + &format!("{options:?}")).contains("hunter2"));
}
