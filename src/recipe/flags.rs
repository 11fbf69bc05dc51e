//! The options of methods on the command line: `--set KEY=VALUE`, and for each key a flag of its own that the help leaves out.

use crate::method::{OptionValues, all_options, flag, value_of};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

/// The flag that sets an option of the method.
pub const SET: &str = "set";

impl Args for OptionValues {
    fn augment_args(command: Command) -> Command {
        let set = Arg::new(SET)
            .long(SET)
            .value_name("KEY=VALUE")
            .action(ArgAction::Append)
            .help_heading("What")
            .help("Option of the method (see `softlm methods NAME`)");
        let hidden =
            |key: &'static str| Arg::new(key).long(flag(key)[2..].to_string()).hide(true).allow_negative_numbers(true);
        command.arg(set).args(all_options().map(|option| hidden(option.key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OptionValues {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let (mut flags, mut environment) = (Self::default(), Self::default());
        for option in all_options() {
            let Some(text) = matches.get_one::<String>(option.key) else { continue };
            let of_environment = matches.value_source(option.key) == Some(ValueSource::EnvVariable);
            let source = if of_environment { &mut environment } else { &mut flags };
            source.set(option.key, value_of(text));
        }
        for text in matches.get_many::<String>(SET).into_iter().flatten() {
            let Some((key, value)) = text.split_once('=') else {
                let what = format!("--set {text} has no value: write --set KEY=VALUE\n");
                return Err(Error::raw(ErrorKind::ValueValidation, what));
            };
            let key = key.trim().replace('-', "_");
            if flags.set(&key, value_of(value.trim())).is_some() {
                return Err(Error::raw(ErrorKind::ArgumentConflict, format!("{key} is set twice\n")));
            }
        }
        Ok(flags.or(environment))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?.or(std::mem::take(self));
        Ok(())
    }
}
