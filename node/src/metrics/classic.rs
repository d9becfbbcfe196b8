//! The text format that Prometheus had before OpenMetrics (0.0.4), for whoever does not ask for the
//! newer one: the same samples, with the names of counters in full where they are described.

/// Makes classic text of OpenMetrics text as this program writes it.
pub(super) fn classic(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { continue };
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_by_the_names_of_their_samples() {
        let openmetrics = "# HELP a Some a.\n# TYPE a counter\na_total{x=\"# no\"} 1\n\
                           # HELP b_bytes Some b.\n# TYPE b_bytes gauge\n# UNIT b_bytes bytes\nb_bytes 2\n\
                           # HELP c This.\n# TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let wanted = "# HELP a_total Some a.\n# TYPE a_total counter\na_total{x=\"# no\"} 1\n\
                      # HELP b_bytes Some b.\n# TYPE b_bytes gauge\nb_bytes 2\n\
                      # HELP c_info This.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(classic(openmetrics), wanted);
    }
}
