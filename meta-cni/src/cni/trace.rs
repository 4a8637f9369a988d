//! The trace that a call is part of, as W3C's Trace Context has it: the runtime hands it over in `TRACEPARENT`, and we to
//! the plugins that we execute and to the API server, each with a span ID of its own.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

/// The variable, and the name of the header.
pub const TRACEPARENT: &str = "TRACEPARENT";
/// What vendors add. It is passed on as it is.
pub const TRACESTATE: &str = "TRACESTATE";

/// What the runtime says of a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trace {
    /// Nothing.
    #[default]
    None,
    /// What it says is no trace: it is not passed on.
    Invalid,
    /// The call is part of this one.
    Of(TraceContext),
}

/// A trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    id: String,
    flags: u8,
}

/// One step of ours in a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceSpan {
    /// Its ID.
    pub id: String,
    /// `TRACEPARENT` for who does the step.
    pub parent: String,
}

impl Trace {
    /// By the value of `TRACEPARENT`.
    #[must_use]
    pub fn read(text: Option<&str>) -> Self {
        match text {
            None | Some("") => Self::None,
            Some(text) => TraceContext::parse(text).map_or(Self::Invalid, Self::Of),
        }
    }

    /// The ID of the trace; empty if there is none.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Of(context) => &context.id,
            Self::None | Self::Invalid => "",
        }
    }

    /// A span for one step.
    #[must_use]
    pub fn span(&self) -> Option<TraceSpan> {
        match self {
            Self::Of(context) => Some(context.span()),
            Self::None | Self::Invalid => None,
        }
    }
}

impl TraceContext {
    /// `VERSION-TRACE-PARENT-FLAGS`; what a version after ours has behind that is left out, as the standard says.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |text: &str, length| {
            text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let is_id = |text: &str, length| is_hex(text, length) && text.bytes().any(|byte| byte != b'0');
        let has_more = parts.next().is_some();
        let fits = is_hex(version, 2) && version != "ff" && !(version == "00" && has_more);
        if !(fits && is_id(id, 32) && is_id(parent, 16) && is_hex(flags, 2)) {
            return None;
        }
        // Sampled, and random: what the other bits mean is not known.
        Some(Self { id: id.to_owned(), flags: u8::from_str_radix(flags, 16).ok()? & 0b11 })
    }

    fn span(&self) -> TraceSpan {
        // Every RandomState has keys of its own, from the kernel's random numbers. An ID of zeros is none.
        let number = RandomState::new().build_hasher().finish().max(1);
        let id = format!("{number:016x}");
        TraceSpan { parent: format!("00-{}-{id}-{:02x}", self.id, self.flags), id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_span_of_the_trace_has_an_id_of_its_own_and_the_flags_that_are_known() {
        for (flags, kept) in [("00", "00"), ("01", "01"), ("ff", "03")] {
            let trace = Trace::read(Some(&format!("00-{ID}-00f067aa0ba902b7-{flags}")));
            assert_eq!(trace.id(), ID);
            let (one, other) = (trace.span().unwrap(), trace.span().unwrap());
            assert_ne!(one.id, other.id);
            assert_eq!(one.parent, format!("00-{ID}-{}-{kept}", one.id));
            assert!(matches!(Trace::read(Some(&one.parent)), Trace::Of(_)), "{}", one.parent);
        }
        let later = Trace::read(Some(&format!("cc-{ID}-00f067aa0ba902b7-01-what-comes")));
        assert_eq!(later.id(), ID);
    }

    #[test]
    fn what_is_no_trace_is_told_apart_from_none() {
        assert_eq!((Trace::read(None), Trace::read(Some(""))), (Trace::None, Trace::None));
        let zeros = "0".repeat(32);
        for wrong in [
            format!("00-{ID}-00f067aa0ba902b7"),
            format!("00-{ID}-00f067aa0ba902b7-01-more"),
            format!("ff-{ID}-00f067aa0ba902b7-01"),
            format!("0-{ID}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", ID.to_uppercase()),
            format!("00-{zeros}-00f067aa0ba902b7-01"),
            format!("00-{ID}-0000000000000000-01"),
            format!("00-{ID}-00f067aa0ba902b7-1"),
            format!("00-{ID}-00f067aa0ba902b7-01\n"),
            "x".to_owned(),
        ] {
            assert_eq!(Trace::read(Some(&wrong)), Trace::Invalid, "{wrong}");
        }
    }
}
