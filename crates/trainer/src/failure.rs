//! Exit codes: 2 for what the user can put right, 1 for what failed, 130 for a command that was interrupted; and what is said.

use std::{fmt, io};

/// A mistake in what was asked for.
#[derive(Debug)]
pub struct UserError(pub String);

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UserError {}

/// The user stopped the command.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// What failed on the way, whatever kind of mistake it would have been at the start: the context of an error.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) &'static str);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An error for a mistake in what was asked for.
pub(crate) fn user_error(message: impl Into<String>) -> anyhow::Error {
    UserError(message.into()).into()
}

/// The process's exit code for an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Interrupted>() {
        return 130;
    }
    if error.is::<Failure>() {
        return 1;
    }
    if error.chain().any(is_users_mistake) { 2 } else { 1 }
}

/// Whether all that is wrong is that nobody reads standard output any more, as after `| head`: nobody wants to hear of that.
pub fn is_unread(error: &anyhow::Error) -> bool {
    let root = error.downcast_ref::<io::Error>();
    error.chain().count() == 1 && root.is_some_and(|it| it.kind() == io::ErrorKind::BrokenPipe)
}

/// An error with its causes, each said once: many repeat what lies below them.
pub fn message(error: &anyhow::Error) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let mut said = causes.next().unwrap_or_default();
    for cause in causes.filter(|it| !it.is_empty()) {
        if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

fn is_users_mistake(error: &(dyn std::error::Error + 'static)) -> bool {
    use halfbyte_files::Error as Files;
    use halfbyte_lora::Error as Lora;
    use halfbyte_models::Error as Models;
    use halfbyte_train::Error as Train;
    if error.is::<UserError>() {
        return true;
    }
    if let Some(it) = error.downcast_ref::<Lora>() {
        return match it {
            Lora::Files(it) => matches!(it, Files::File { .. }),
            other => matches!(other, Lora::Config(_) | Lora::NoTarget { .. } | Lora::File { .. }),
        };
    }
    if let Some(it) = error.downcast_ref::<Models>() {
        return match it {
            Models::Files(it) => matches!(it, Files::File { .. }),
            other => matches!(other, Models::File { .. } | Models::Freeze { .. } | Models::Input(_)),
        };
    }
    if let Some(it) = error.downcast_ref::<Files>() {
        return matches!(it, Files::File { .. });
    }
    if let Some(it) = error.downcast_ref::<Train>() {
        // What it passes on as its own is judged as that would be.
        return match it {
            Train::Files(inner) => is_users_mistake(inner),
            Train::Caller(inner) => is_users_mistake(inner.as_ref()),
            Train::Data(inner) => is_users_mistake(inner),
            Train::Model(inner) => is_users_mistake(inner),
            Train::State { .. } | Train::Optim(halfbyte_paged_optim::Error::Setting { .. }) => true,
            _ => false,
        };
    }
    if let Some(it) = error.downcast_ref::<io::Error>() {
        return matches!(it.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
    }
    if let Some(it) = error.downcast_ref::<halfbyte_data::Error>() {
        // What the system refused is the system's reason, which comes next.
        return !matches!(it, halfbyte_data::Error::Read { .. });
    }
    if let Some(it) = error.downcast_ref::<halfbyte_hub::Error>() {
        return matches!(it, halfbyte_hub::Error::Asked { .. });
    }
    error.is::<halfbyte_cuda::Error>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_cause_is_said_once() {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let error = halfbyte_files::Error::Io { path: "a/b".into(), source: gone() };
        let error = anyhow::Error::from(error).context("cannot go on");
        assert_eq!(message(&error), "cannot go on: a/b: entity not found");
    }

    #[test]
    fn what_is_missing_at_the_start_is_a_mistake_and_on_the_way_a_failure() {
        let gone = || -> anyhow::Result<()> { Err(io::Error::from(io::ErrorKind::NotFound).into()) };
        assert_eq!(exit_code(&gone().unwrap_err()), 2);
        assert_eq!(exit_code(&gone().context(Failure("the result")).unwrap_err()), 1);
        let read = |kind: io::ErrorKind| halfbyte_data::Error::Read { path: "rows".into(), source: kind.into() };
        assert_eq!(exit_code(&read(io::ErrorKind::PermissionDenied).into()), 2);
        assert_eq!(exit_code(&read(io::ErrorKind::UnexpectedEof).into()), 1);
    }
}
