//! Colours that people tell apart who see fewer of them, on light and on dark pages.

use plotters::style::RGBColor;

/// Text and axes, and lines of a grid, as a plot has them; `style.css` makes them lighter on dark pages.
pub const INK: RGBColor = RGBColor(0x1F, 0x23, 0x28);
pub const GRID: RGBColor = RGBColor(0xD8, 0xDE, 0xE4);

/// One per series of a plot, on a light page; each has a marker of its own as well. `style.css` replaces them on dark pages.
pub const SERIES: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x7A, 0x5A),
    RGBColor(0xB0, 0x57, 0x8D),
    RGBColor(0x8A, 0x6D, 0x00),
    RGBColor(0x4D, 0x4D, 0x4D),
    RGBColor(0x5B, 0x4B, 0xB7),
    RGBColor(0x14, 0x86, 0xA6),
];

/// From little to all, even in lightness (cividis): a cell's class is `k0` to `k9`.
pub const RAMP: [&str; 10] =
    ["#00224E", "#123570", "#3B496C", "#575D6D", "#707173", "#8A8678", "#A59C74", "#C3B369", "#E1CC55", "#FEE838"];

/// The class of a share 0..1.
pub fn class(share: f64) -> String {
    let step = (share * RAMP.len() as f64).clamp(0.0, RAMP.len() as f64 - 1.0);
    format!("k{}", step as usize)
}

/// Rules for the classes, with the text that can be read on each.
pub fn rules() -> String {
    let rule = |(i, colour): (usize, &&str)| {
        let light = contrast(colour, "#FFFFFF") > contrast(colour, "#000000");
        format!(".k{i}{{background:{colour};color:{}}}\n", if light { "#FFF" } else { "#000" })
    };
    RAMP.iter().enumerate().map(rule).collect()
}

/// Ratio of contrast of WCAG 2, 1 to 21.
fn contrast(a: &str, b: &str) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

fn luminance(colour: &str) -> f64 {
    let part = |i: usize| {
        let hex = colour.get(1 + 2 * i..3 + 2 * i).unwrap_or_default();
        let x = f64::from(u8::from_str_radix(hex, 16).unwrap_or(0)) / 255.0;
        if x <= 0.04045 { x / 12.92 } else { ((x + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * part(0) + 0.7152 * part(1) + 0.0722 * part(2)
}

#[cfg(test)]
mod tests {
    use super::super::STYLE;
    use super::*;

    fn hex(RGBColor(r, g, b): RGBColor) -> String {
        format!("#{r:02X}{g:02X}{b:02X}")
    }

    /// The value of `--name` on light and dark pages.
    fn of_page(name: &str) -> Vec<&'static str> {
        let key = format!("--{name}:");
        STYLE.match_indices(&key).map(|(at, _)| &STYLE[at + key.len()..at + key.len() + 7]).collect()
    }

    #[test]
    fn text_and_lines_stand_out_on_both_pages() {
        assert!((contrast("#FFFFFF", "#000000") - 21.0).abs() < 1e-9);
        let (pages, panels) = (of_page("page"), of_page("panel"));
        assert_eq!((pages.len(), panels.len()), (2, 2));
        for (mode, page) in pages.iter().enumerate() {
            for text in ["ink", "dim", "link"] {
                for below in [page, panels[mode]] {
                    let ratio = contrast(of_page(text)[mode], below);
                    assert!(ratio >= 4.5, "{text} on {below}: {ratio:.2}");
                }
            }
        }
        let dark = STYLE.split_once("prefers-color-scheme:dark").expect("a dark page").1;
        for colour in SERIES.map(hex) {
            assert!(contrast(&colour, panels[0]) >= 3.0, "{colour}");
            let key = format!("svg [fill=\"{colour}\"]{{fill:");
            let at = dark.find(&key).unwrap_or_else(|| panic!("{colour} has no dark form")) + key.len();
            assert!(contrast(&dark[at..at + 7], panels[1]) >= 3.0, "{colour}");
            assert!(dark.contains(&format!("svg [stroke=\"{colour}\"]{{stroke:{}", &dark[at..at + 7])), "{colour}");
        }
        for colour in [INK, GRID].map(hex) {
            assert!(dark.contains(&format!("svg [stroke=\"{colour}\"]")), "{colour}");
        }
        for colour in RAMP {
            assert!(contrast(colour, "#FFFFFF").max(contrast(colour, "#000000")) >= 4.5, "{colour}");
        }
        assert_eq!([0.0, 0.05, 0.7, 1.0, 7.0, f64::NAN].map(class), ["k0", "k0", "k7", "k9", "k9", "k0"]);
    }
}
