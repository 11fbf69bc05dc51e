//! Text that stays text in HTML.

use crate::visible::visible;

/// `text` as it may stand between tags and in quoted attributes: nothing in it is markup, and nothing acts on a reader.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// A table; the first row is its head, the first column names the rows. Cells are text.
pub fn table(rows: &[Vec<String>], class: &str, caption: &str) -> String {
    let mut out = format!("<div class=\"scroll\"><table class=\"{class}\">");
    if !caption.is_empty() {
        out += &format!("<caption>{}</caption>", escape(caption));
    }
    for (i, row) in rows.iter().enumerate() {
        let cell = |(j, cell): (usize, &String)| match (i, j) {
            (0, _) => format!("<th scope=\"col\">{}</th>", escape(cell)),
            (_, 0) => format!("<th scope=\"row\">{}</th>", escape(cell)),
            _ => format!("<td>{}</td>", escape(cell)),
        };
        out += &format!("<tr>{}</tr>\n", row.iter().enumerate().map(cell).collect::<String>());
    }
    out + "</table></div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_markup() {
        assert_eq!(escape("<b a='1' b=\"2\">&\u{202e}"), "&lt;b a=&#39;1&#39; b=&quot;2&quot;&gt;&amp;\\u{202e}");
        let rows = [vec!["<h>".to_string()], vec!["<r>".to_string(), "<c>".to_string()]];
        assert!(!table(&rows, "", "<caption>").replace("<caption>&lt;caption&gt;", "").contains("<c>"));
    }
}
