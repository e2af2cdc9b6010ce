//! Exit codes: 2 for what the user can put right, 1 for what failed, 130 for a command that was interrupted.

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

/// An error for a mistake in what was asked for.
pub(crate) fn user_error(message: impl Into<String>) -> anyhow::Error {
    UserError(message.into()).into()
}

/// The process's exit code for an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Interrupted>() {
        return 130;
    }
    if error.chain().any(is_users_mistake) { 2 } else { 1 }
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
            _ => false,
        };
    }
    if let Some(it) = error.downcast_ref::<io::Error>() {
        return it.kind() == io::ErrorKind::NotFound;
    }
    error.is::<halfbyte_data::Error>() || error.is::<halfbyte_cuda::Error>()
}
