//! The model an output was made from: what the output says about it, and whether what is found is still that model.

use crate::checkpoint::{FileHash, Identity, Kind, Section, Source, differences};
use crate::hub::{self, HubOptions};
use crate::progress::Progress;
use crate::user_bail;
use anyhow::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// What an output says about itself and its original.
pub struct Original {
    /// How the output is called in messages.
    output: String,
    /// The original, as it was named when the output was made.
    name: String,
    kind: Kind,
    revision: Option<String>,
    /// What is recorded of its files; nothing if the output has no report.
    recorded: Option<Identity>,
    /// What is recorded of the output's own.
    own: Option<Identity>,
}

/// Where the search for an original ended.
pub enum Found {
    /// It is the recorded one, as far as was recorded.
    Here(Box<Source>),
    /// There is nothing in its place, and this is why.
    Absent(Error),
}

/// `report.json`, as far as it tells models apart. Version 0.1 recorded the original's weights and nothing else.
#[derive(Deserialize)]
struct Recorded {
    model: RecordedModel,
    #[serde(default)]
    output: Option<Identity>,
}

#[derive(Deserialize)]
struct RecordedModel {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    kind: Option<Kind>,
    #[serde(flatten)]
    identity: Identity,
}

/// Fails if a place of the original is given for a model that was made from none.
pub fn refuse_base(model: &str, place: Option<&str>) -> Result<()> {
    if let Some(place) = place {
        user_bail!(
            "--base {place} says where the model is that an output was made from, but {model} is no output of softlm";
            "--against compares with any model"
        );
    }
    Ok(())
}

impl Original {
    /// What `source` says; `None` if it is no output. One whose section was taken out of config.json still has its report.
    pub fn of(source: &Source) -> Result<Option<Self>> {
        let section = Section::of(source.config());
        let label = source.label();
        let report: Option<Recorded> = match source.side_file("report.json")? {
            None => None,
            Some(bytes) => match serde_json::from_slice(&bytes) {
                Ok(report) => Some(report),
                // Other programs write files of this name too.
                Err(_) if section.is_none() => None,
                Err(error) => user_bail!(
                    "the report.json of {label} cannot be read: {error}";
                    "get or make {label} again; without its report.json it is taken as it is"
                ),
            },
        };
        let report = report.filter(|report| section.is_some() || report.output.is_some());
        let revision = section.as_ref().and_then(|section| section.base_revision.clone());
        let named = section.and_then(|section| section.base_model);
        let Some(name) = named.or_else(|| report.as_ref()?.model.name.clone()) else { return Ok(None) };
        let kind = report.as_ref().and_then(|report| report.model.kind).unwrap_or(match (&revision, name.as_str()) {
            (Some(_), _) => Kind::Hub,
            (None, "demo") if !Path::new("demo").exists() => Kind::BuiltIn,
            (None, _) => Kind::Folder,
        });
        let (recorded, own) = report.map_or((None, None), |report| (Some(report.model.identity), report.output));
        Ok(Some(Self { output: label.to_string(), name, kind, revision, recorded, own }))
    }

    /// How the original is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One sentence for each file by which the output differs from what was written. `None` if nothing was recorded.
    /// Reads the weights.
    pub fn changes(&self, output: &Source) -> Result<Option<Vec<String>>> {
        let Some(own) = &self.own else { return Ok(None) };
        let found = output.identity()?;
        let mut changes = differences(&own.weights, &found.weights);
        changes.extend(differences(&own.files, &found.files));
        Ok(Some(changes))
    }

    /// Fails if the output is not what was written; says so if that cannot be known.
    pub fn check_output(&self, output: &Source, progress: &dyn Progress) -> Result<()> {
        let label = &self.output;
        match self.changes(output)? {
            None => {
                progress.note(&format!("{label} does not record its own hashes: whether it was changed is not known"))
            }
            Some(changes) => {
                if let Some(change) = changes.first() {
                    user_bail!(
                        "{label} is not as it was written: {change}";
                        "get or make it again; without its report.json it is taken as it is"
                    );
                }
            }
        }
        Ok(())
    }

    /// Finds the original, at `place` if that is given, otherwise where it was.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) if what is there is another model.
    pub fn find(&self, place: Option<&str>, hub: &HubOptions, progress: &dyn Progress) -> Result<Found> {
        let source = match place {
            Some(place) => super::open_source(place, hub)?,
            None => match self.open(hub) {
                Ok(source) => source,
                Err(error) => return Ok(Found::Absent(error)),
            },
        };
        self.check(&source, progress)?;
        Ok(Found::Here(Box::new(source)))
    }

    /// Opens what is where the original was. A folder that is gone is not looked for elsewhere.
    fn open(&self, hub: &HubOptions) -> Result<Source> {
        let name = &self.name;
        match self.kind {
            Kind::BuiltIn => Ok(Source::demo()),
            Kind::Folder => Ok(Source::open(Path::new(name))?.with_label(name)),
            Kind::Hub => {
                let revision = self.revision.clone().or_else(|| hub.revision.clone());
                let snapshot = hub::model(name, &HubOptions { revision, ..hub.clone() })?;
                Ok(Source::open(&snapshot.dir)?.with_label(name).with_revision(snapshot.revision))
            }
        }
    }

    /// Fails if `found` is not the recorded original; says so if that cannot be known.
    fn check(&self, found: &Source, progress: &dyn Progress) -> Result<()> {
        let (output, label) = (&self.output, found.label());
        let Some(recorded) = &self.recorded else {
            progress.note(&format!(
                "{output} has no report.json: whether {label} is the model it was made from is not known"
            ));
            return Ok(());
        };
        let identity = found.identity()?;
        let config = |identity: &Identity| identity.config().cloned().into_iter().collect::<Vec<FileHash>>();
        let mut changes = differences(&recorded.weights, &identity.weights);
        if recorded.config().is_some() {
            changes.extend(differences(&config(recorded), &config(&identity)));
        } else if changes.is_empty() {
            progress.note(&format!(
                "{output} records no hash of config.json: {label} has the weights it was made from, its settings may differ"
            ));
        }
        if let Some(change) = changes.first() {
            user_bail!(
                "{label} is not the model that {output} was made from: {change}";
                "say where that is with --base PATH, or compare with any other model with --against"
            );
        }
        Ok(())
    }
}
