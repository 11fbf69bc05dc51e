//! Which proxy the environment names for a server, as curl reads it: a variable per scheme, `ALL_PROXY` for both, lower case
//! before upper case, and `NO_PROXY` for the hosts that are reached without.

use std::net::IpAddr;

use url::{Host, Url};

/// The proxy for `url`, and the variable that names it.
pub(super) fn proxy(url: &Url, lookup: impl Fn(&str) -> Option<String>) -> Option<(&'static str, String)> {
    let get = |name: &str| lookup(&name.to_lowercase()).or_else(|| lookup(name)).filter(|value| !value.is_empty());
    let own = if url.scheme() == "https" { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let found = [own, "ALL_PROXY"].into_iter().find_map(|name| Some((name, get(name)?)))?;
    let without = get("NO_PROXY").unwrap_or_default();
    let mut entries = without.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty());
    (!entries.any(|entry| covers(entry, url))).then_some(found)
}

/// Whether an entry of `NO_PROXY` (`*`, a domain with all below it, an address or a range of them, each with or without a
/// port) covers the server of `url`.
fn covers(entry: &str, url: &Url) -> bool {
    if entry == "*" {
        return true;
    }
    let address = match url.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        _ => None,
    };
    if let Some(address) = address {
        if let Some((network, bits)) = entry.split_once('/') {
            return network.parse().is_ok_and(|network| in_range(address, network, bits.parse().unwrap_or(u32::MAX)));
        }
        if let Ok(entry) = entry.trim_matches(['[', ']']).parse::<IpAddr>() {
            return entry == address;
        }
    }
    let (name, port) = match entry.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => (name, port.parse().ok()),
        _ => (entry, None),
    };
    let name = name.trim_start_matches('*').trim_start_matches('.').to_ascii_lowercase();
    let host = url.host_str().unwrap_or_default();
    let named = host == name || host.strip_suffix(&name).is_some_and(|rest| address.is_none() && rest.ends_with('.'));
    named && !name.is_empty() && (port.is_none() || port == url.port_or_known_default())
}

fn in_range(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let first =
        |left: u128, right: u128, width: u32| bits <= width && (bits == 0 || (left ^ right) >> (width - bits) == 0);
    match (address, network) {
        (IpAddr::V4(left), IpAddr::V4(right)) => first(left.to_bits().into(), right.to_bits().into(), 32),
        (IpAddr::V6(left), IpAddr::V6(right)) => first(left.to_bits(), right.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(url: &str, pairs: &[(&str, &str)]) -> Option<String> {
        let lookup = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        proxy(&Url::parse(url).unwrap(), lookup).map(|(_, proxy)| proxy)
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let both = [("HTTPS_PROXY", "http://s"), ("HTTP_PROXY", "http://p"), ("ALL_PROXY", "http://a")];
        assert_eq!(found("https://huggingface.co", &both).as_deref(), Some("http://s"));
        assert_eq!(found("http://mirror", &both).as_deref(), Some("http://p"));
        assert_eq!(found("http://mirror", &[both[0], both[2]]).as_deref(), Some("http://a"));
        assert_eq!(found("http://mirror", &[both[0]]), None);
        assert_eq!(found("https://x", &[both[0], ("https_proxy", "http://l")]).as_deref(), Some("http://l"));
        assert_eq!(found("https://x", &[("https_proxy", "")]), None);
    }

    #[test]
    fn no_proxy_names_hosts_domains_and_addresses() {
        for (entries, url, without) in [
            ("*", "https://huggingface.co", true),
            ("huggingface.co", "https://huggingface.co", true),
            ("huggingface.co", "https://cdn.huggingface.co", true),
            (".huggingface.co", "https://huggingface.co", true),
            ("*.hf.co, huggingface.co", "https://cdn.hf.co", true),
            ("huggingface.co", "https://nothuggingface.co", false),
            ("huggingface.co:443", "https://huggingface.co", true),
            ("huggingface.co:8443", "https://huggingface.co", false),
            ("localhost,127.0.0.1", "http://127.0.0.1:8080", true),
            ("7.0.0.1", "http://127.7.0.0.1.example", false),
            ("0.0.1", "http://127.0.0.1", false),
            ("10.0.0.0/8", "http://10.3.4.5", true),
            ("10.0.0.0/8", "http://11.3.4.5", false),
            ("10.0.0.0/99", "http://10.0.0.0", false),
            ("fe80::/10", "http://[fe80::1]", true),
            ("::1", "http://[::1]:80", true),
            ("0.0.0.0/0", "http://1.2.3.4", true),
            ("", "http://1.2.3.4", false),
            (".", "http://a", false),
        ] {
            let pairs = [("ALL_PROXY", "http://p"), ("NO_PROXY", entries)];
            assert_eq!(found(url, &pairs).is_none(), without, "{entries:?} {url}");
        }
    }
}
