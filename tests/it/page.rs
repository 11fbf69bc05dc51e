//! Reports as a page: one file, whatever names are in it, written where it may be; in a browser where there is one.

use crate::program::{FAST, Place};
use crate::report::{all_kinds, report};
use softlm::report::{Entry, PAGE_MARK, Report, page};
use std::path::PathBuf;
use std::process::Command;

fn page_of(reports: impl IntoIterator<Item = Report>) -> String {
    let entry = |(i, report)| Entry { name: format!("out-{i}"), report };
    page(&reports.into_iter().enumerate().map(entry).collect::<Vec<_>>()).expect("a page")
}

const EVIL: &str = "<script>alert('1')</script>\"><img src=http://127.0.0.1/x onerror=\"x\">&amp;";

/// A report in which every string that a file or a user gives is markup.
fn evil() -> Report {
    let mut value =
        serde_json::to_value(report(3, |_, role| if role == 6 { "pruned" } else { "low-rank" })).expect("JSON");
    for place in [
        "/softlm",
        "/method",
        "/paper",
        "/model/name",
        "/model/family",
        "/model/revision",
        "/allocation/rule",
        "/model/weights/0/file",
        "/model/weights/0/sha256",
        "/calibration/corpora/0/name",
        "/calibration/corpora/0/origin",
        "/calibration/corpora/0/sha256",
        "/calibration/sampling",
        "/calibration/inputs",
        "/evaluation/0/before/perplexity/corpus",
        "/evaluation/0/after/perplexity/corpus",
        "/evaluation/0/after/perplexity/dtype",
        "/machine/cpu",
        "/machine/os",
        "/machine/device",
        "/notes/0",
        "/cost/stages/0/name",
        "/recipe/model",
        "/linears/0/name",
        "/linears/0/note",
    ] {
        *value.pointer_mut(place).unwrap_or_else(|| panic!("no {place}")) = EVIL.into();
    }
    serde_json::from_value(value).expect("a report")
}

#[test]
fn names_are_no_markup() {
    let other = report(3, |_, _| "dense");
    let entries = [Entry { name: EVIL.into(), report: evil() }, Entry { name: "b".into(), report: other }];
    for page in [page_of([evil()]), page(&entries).expect("a page")] {
        assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&gt;&lt;img"), "{page}");
        for markup in ["<script", "<img", "onerror=\"", "&amp;amp;\""] {
            assert!(!page.contains(markup), "{markup}");
        }
    }
}

#[test]
fn a_page_is_one_file_and_the_same_for_the_same_report() {
    for (kind, report) in all_kinds() {
        let shown = page_of([report.clone()]);
        assert!(shown.starts_with(PAGE_MARK) && shown.ends_with("</html>\n"), "{kind}");
        assert_eq!(shown, page_of([report.clone()]), "{kind}");
        for outside in ["src=", "url(", "@import", "<script", "<iframe", "\x1b"] {
            assert!(!shown.contains(outside), "{kind}: {outside}");
        }
        assert_eq!(shown.matches("href=").count(), 1, "{kind}: only the empty icon");
        for tag in ["table", "figure", "svg", "div", "details", "tr", "td", "th", "p", "h2", "h3"] {
            let opened = shown.matches(&format!("<{tag}>")).count() + shown.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, shown.matches(&format!("</{tag}>")).count(), "{kind}: {tag}");
        }
        for e in &report.evaluation {
            let protocol = "window 256, stride 256, 200 windows, 51,000 targets, no BOS, f32";
            assert!(shown.contains(&format!("{}: {protocol}", e.after.perplexity.corpus)), "{kind}");
        }
        assert!(shown.contains("This report holds no spectra"), "{kind}");
    }
}

#[test]
fn every_linear_is_on_the_map_and_plots_have_axes() {
    let shown = page_of([report(30, |block, role| if block == 7 && role == 1 { "dense" } else { "low-rank" })]);
    assert_eq!(shown.matches("<td class=\"k").count(), 30 * 7);
    let cell = "<td class=\"k9\" title=\"7.attn.k, 256×2048: dense, 100.0 % kept\"";
    assert!(shown.contains(cell), "{shown}");
    assert!(shown.contains("title=\"29.mlp.down, 2048×5632: 1201, 80.0 % kept, held-out error 0.0413\""), "{shown}");
    for axis in
        ["parameters of the whole model, millions", "perplexity (lower is better)", ">\nblock<", "held-out error"]
    {
        assert!(shown.contains(axis) || shown.contains(&axis.replace('\n', "")), "{axis}");
    }
}

#[test]
fn a_page_is_written_only_where_it_may_be() {
    let place = Place::new();
    let compress = format!("compress demo --method svd {FAST} -o out");
    place.write("thesis.html", "mine");
    std::fs::create_dir(place.path("folder")).expect("a folder");
    for (path, naming) in [
        ("thesis.html", &["thesis.html", "no page"][..]),
        ("folder", &["folder"]),
        ("nowhere/a.html", &["nowhere/a.html"]),
        ("out/a.html", &["out/a.html", "lies in the output"]),
        ("./out/../out/a.html", &["out"]),
    ] {
        place.run(&format!("{compress} --html {path}")).refused(naming);
        assert!(!place.path("out").exists() && !place.path("out.softlm-work").exists(), "{path}: before any work");
    }
    place.run(&format!("{compress} --html a.html")).fine();
    let first = place.read("a.html");
    assert!(first.starts_with(PAGE_MARK.as_bytes()));
    // The same command has nothing to do, and writes the same page over its own.
    place.run(&format!("{compress} --html a.html")).fine();
    assert_eq!(place.read("a.html"), first);
    place.run(&format!("compress demo --method rom {FAST} -o other")).fine();
    place.run("compare out other --html thesis.html").refused(&["thesis.html", "--force"]);
    assert_eq!(place.read("thesis.html"), b"mine");
    place.run("compare out other --html thesis.html --force").fine();
    let compared = String::from_utf8(place.read("thesis.html")).expect("UTF-8");
    assert!(compared.contains("2 outputs side by side") && compared.contains("What was done differently"));
}

/// A browser that needs no screen: `SOFTLM_CHROMIUM`, or one of the usual names.
fn browser() -> Option<PathBuf> {
    let named = std::env::var_os("SOFTLM_CHROMIUM").map(PathBuf::from);
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file());
    let found = named.or(found);
    if found.is_none() {
        println!("skipped: no Chromium (SOFTLM_CHROMIUM, or `chromium` in the PATH)");
    }
    found
}

/// The document as it is after it was opened, and what the browser's console said.
fn opened(browser: &PathBuf, place: &Place, name: &str, html: &str) -> (String, Vec<String>) {
    let file = place.write(name, html);
    let profile = format!("--user-data-dir={}", place.path("profile").display());
    let mut command = Command::new(browser);
    command.env("HOME", place.path("home"));
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
    command.args(["--enable-logging=stderr", "--dump-dom", "--virtual-time-budget=5000", &profile]);
    let output = command.arg(format!("file://{}", file.display())).output().expect("the browser starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let console = said.lines().filter(|line| line.contains(":CONSOLE")).map(String::from).collect();
    (String::from_utf8_lossy(&output.stdout).into_owned(), console)
}

#[test]
fn a_browser_opens_it_without_error_or_request_and_it_fits_a_telephone() {
    let Some(browser) = browser() else { return };
    let place = Place::new();
    let many = || (0..3).map(|i| report(30, move |block, _| if block % 3 == i { "dense" } else { "low-rank" }));
    for shown in [page_of([evil()]), page_of(many())] {
        let (dom, console) = opened(&browser, &place, "page.html", &shown);
        assert!(dom.contains("</main>") && dom.contains("<svg"), "{dom:.2000}");
        assert_eq!(console, Vec::<String>::new(), "an error, or a request that the page's own policy stopped");
        // The check can fail: the policy stops a request, and the console says so.
        let reaching = shown.replace("</main>", "<img src=\"http://127.0.0.1:9/x.png\"></main>");
        let (_, console) = opened(&browser, &place, "reaching.html", &reaching);
        assert!(console.iter().any(|line| line.contains("Content Security Policy")), "{console:?}");

        let inner = shown.replace('&', "&amp;").replace('"', "&quot;");
        let script = "const f = document.querySelector('iframe'); f.onload = () => { const d = \
                      f.contentDocument.documentElement; document.title = `${d.scrollWidth} of ${d.clientWidth}` }";
        // The page is given as an attribute: a document of the same origin, which can be measured.
        let frame = format!("<iframe width=\"400\" height=\"800\" style=\"border:0\" srcdoc=\"{inner}\"></iframe>");
        let narrow = format!("<!doctype html><title></title>{frame}<script>{script}</script>");
        let (dom, _) = opened(&browser, &place, "narrow.html", &narrow);
        let title = dom.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
        let (width, room) = title.and_then(|(title, _)| title.split_once(" of ")).expect("measured");
        let (width, room): (u32, u32) = (width.parse().expect("a width"), room.parse().expect("a width"));
        assert!(room <= 400 && width <= room, "{width} of {room}");
    }
}
