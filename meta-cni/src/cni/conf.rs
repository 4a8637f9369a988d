//! A network configuration: a list of plugins, or a single one.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde_json::value::RawValue;

use super::{Error, Object, SpecVersion, check_network_name};

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// `type`: the name of its program.
    pub kind: String,
    /// Its object as it stands in the configuration.
    pub object: Object,
}

impl Plugin {
    fn parse(object: Object) -> Result<Self, Error> {
        let kind = object.text("type")?;
        if kind.is_empty() {
            return Err(Error::Config("a plugin has no \"type\"".to_owned()));
        }
        if kind.contains('/') || kind.contains("..") {
            return Err(Error::Config(format!(
                "plugin type \"{kind}\" is a path: give the name of a program in binDir"
            )));
        }
        let plugin = Self { kind, object };
        plugin.capabilities()?;
        Ok(plugin)
    }

    /// The capabilities it declares as true.
    ///
    /// # Errors
    /// [`Error::Config`] when `capabilities` is no object of switches.
    pub fn capabilities(&self) -> Result<BTreeSet<String>, Error> {
        let Some(declared) = self.object.get::<Object>("capabilities")? else { return Ok(BTreeSet::new()) };
        let mut names = BTreeSet::new();
        for key in declared.keys() {
            if declared.switch(key)? {
                names.insert(key.to_owned());
            }
        }
        Ok(names)
    }
}

/// A network configuration ready to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginList {
    /// The network's name.
    pub name: String,
    /// The version its plugins are called with.
    pub version: SpecVersion,
    /// The plugins in order; never empty.
    pub plugins: Vec<Plugin>,
    /// CHECK is not wanted.
    pub disable_check: bool,
    /// GC is not wanted.
    pub disable_gc: bool,
}

impl PluginList {
    /// Reads a conflist (`plugins`) or a single conf (`type`).
    ///
    /// `name` is taken when the text has none: old definitions leave it out.
    ///
    /// # Errors
    /// [`Error::Config`] that says what is missing, [`Error::IncompatibleVersion`].
    pub fn from_object(object: Object, name: Option<&str>) -> Result<Self, Error> {
        let plugins = match object.get::<Vec<Object>>("plugins")? {
            Some(plugins) if plugins.is_empty() => return Err(Error::Config("\"plugins\" is empty".to_owned())),
            Some(plugins) => plugins.into_iter().map(Plugin::parse).collect::<Result<_, _>>()?,
            None if object.text("type")?.is_empty() => {
                return Err(Error::Config("neither \"type\" nor \"plugins\" is given".to_owned()));
            }
            None => vec![Plugin::parse(object.clone())?],
        };
        Self::assemble(&object, name, plugins)
    }

    fn assemble(object: &Object, name: Option<&str>, plugins: Vec<Plugin>) -> Result<Self, Error> {
        let own_name = object.text("name")?;
        let name = if own_name.is_empty() { name.unwrap_or_default().to_owned() } else { own_name };
        check_network_name(&name)?;
        Ok(Self {
            name,
            version: version_of(object)?,
            plugins,
            disable_check: object.switch("disableCheck")?,
            disable_gc: object.switch("disableGC")?,
        })
    }

    /// Reads a file, with the chained confs of its sub-directory: `DIR/NAME/*.conf` are added to a list that does not
    /// say `loadOnlyInlinedPlugins` (libcni `NetworkConfFromFile`), in the order of their names.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Decode`] with the file's name, [`Error::Config`] as [`PluginList::from_object`].
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let named = |error: Error| match error {
            Error::Config(text) => Error::Config(format!("{}: {text}", path.display())),
            version @ Error::IncompatibleVersion { .. } => version.of_network(path.display().to_string()),
            other => other,
        };
        let text = std::fs::read(path).map_err(|source| Error::io("read", path.display(), source))?;
        let object = Object::parse(&path.display().to_string(), &text)?;
        if object.raw("type").is_some() && object.raw("plugins").is_none() {
            return Self::from_object(object, None).map_err(named);
        }
        let mut plugins = Vec::new();
        for plugin in object.get::<Vec<Object>>("plugins").map_err(named)?.unwrap_or_default() {
            plugins.push(Plugin::parse(plugin).map_err(named)?);
        }
        if !object.switch("loadOnlyInlinedPlugins").map_err(named)? {
            let name = object.text("name").map_err(named)?;
            check_network_name(&name).map_err(named)?;
            for chained in files_in(&path.with_file_name(name), &["conf"]) {
                let text = std::fs::read(&chained).map_err(|source| Error::io("read", chained.display(), source))?;
                plugins.push(Plugin::parse(Object::parse(&chained.display().to_string(), &text)?).map_err(named)?);
            }
        }
        if plugins.is_empty() {
            return Err(named(Error::Config("no plugin is given, inline or in the directory beside it".to_owned())));
        }
        Self::assemble(&object, None, plugins).map_err(named)
    }

    /// Finds the configuration of a name in a directory: `.conflist` first, then `.conf` and `.json`, each by name of
    /// file. A file that does not parse is passed over with a warning: it need not be the one that is wanted.
    ///
    /// # Errors
    /// As [`PluginList::from_file`] for the file that has the name; [`Error::Config`], marked as missing, when none has it.
    pub fn find(directory: &Path, name: &str) -> Result<Self, Error> {
        for extensions in [&["conflist"][..], &["conf", "json"][..]] {
            for path in files_in(directory, extensions) {
                match conf_name(&path) {
                    Ok(found) if found == name => return Self::from_file(&path),
                    Ok(_) => {}
                    Err(error) => tracing::warn!(file = %path.display(), %error, "configuration passed over"),
                }
            }
        }
        Err(Error::Config(format!("no configuration named \"{name}\" in {}", directory.display())).missing(name))
    }

    /// The list as one JSON text, as [`PluginList::from_object`] reads it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let plugins: Vec<&Object> = self.plugins.iter().map(|plugin| &plugin.object).collect();
        let mut object = Object::default();
        object.set("cniVersion", self.version.as_str());
        object.set("name", &self.name);
        object.set("disableCheck", &self.disable_check);
        object.set("disableGC", &self.disable_gc);
        object.set("plugins", &plugins);
        object.to_text()
    }

    /// The types of the plugins, for messages.
    #[must_use]
    pub fn kinds(&self) -> String {
        self.plugins.iter().map(|plugin| plugin.kind.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// The highest of `cniVersion` and `cniVersions` that we speak (libcni's choice); entries that are no version are refused.
fn version_of(object: &Object) -> Result<SpecVersion, Error> {
    let own = object.text("cniVersion")?;
    let Some(offered) = object.get::<Vec<String>>("cniVersions")?.filter(|offered| !offered.is_empty()) else {
        return SpecVersion::of_conf(Some(&own));
    };
    let mut best = None;
    for text in offered.iter().chain((!own.is_empty()).then_some(&own)) {
        if text.split('.').count() != 3 || text.split('.').any(|part| part.parse::<u32>().is_err()) {
            return Err(Error::Config(format!("\"cniVersions\": \"{text}\" is no version")));
        }
        best = best.max(SpecVersion::of_conf(Some(text)).ok());
    }
    best.ok_or(Error::IncompatibleVersion { config: offered.join(", ") })
}

/// The files of a directory with one of the extensions, by name. A missing directory has none.
#[must_use]
pub fn files_in(directory: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let wanted = |path: &PathBuf| path.extension().is_some_and(|ext| extensions.iter().any(|wanted| ext == *wanted));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(wanted).collect();
    files.sort();
    files
}

fn conf_name(path: &Path) -> Result<String, Error> {
    let text = std::fs::read(path).map_err(|source| Error::io("read", path.display(), source))?;
    Object::parse(&path.display().to_string(), &text)?.text("name")
}

/// Whether a type, at any depth of a configuration, would run a meta plugin again.
#[must_use]
pub fn names_meta_plugin(object: &Object) -> Option<String> {
    const META: [&str; 3] = ["meta-cni", "multus", "multus-shim"];
    fn walk(value: &RawValue) -> Option<String> {
        match value.get().as_bytes().first()? {
            b'{' => names_meta_plugin(&serde_json::from_str::<Object>(value.get()).ok()?),
            b'[' => serde_json::from_str::<Vec<Box<RawValue>>>(value.get()).ok()?.iter().find_map(|item| walk(item)),
            _ => None,
        }
    }
    let own = object.text("type").ok().filter(|kind| META.contains(&kind.as_str()));
    own.or_else(|| object.keys().find_map(|key| walk(object.raw(key)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<PluginList, Error> {
        PluginList::from_object(Object::parse("test", text.as_bytes())?, Some("given"))
    }

    #[test]
    fn a_conf_without_name_takes_the_given_one() {
        let found = list(r#"{"cniVersion":"0.4.0","type":"sriov","vlan":100}"#).unwrap();
        assert_eq!((found.name.as_str(), found.version, found.plugins.len()), ("given", SpecVersion::V0_4_0, 1));
    }

    #[test]
    fn the_highest_version_that_both_speak_is_used() {
        let text = r#"{"cniVersion":"1.0.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"type":"x"}"#;
        assert_eq!(list(text).unwrap().version, SpecVersion::V1_1_0);
        assert_eq!(list(r#"{"type":"x"}"#).unwrap().version, SpecVersion::V0_1_0);
        assert!(matches!(list(r#"{"cniVersion":"1.2.0","type":"x"}"#), Err(Error::IncompatibleVersion { .. })));
        assert!(matches!(list(r#"{"cniVersions":["one"],"type":"x"}"#), Err(Error::Config(_))));
    }

    #[test]
    fn wrong_lists_are_refused_with_what_is_missing() {
        for (text, part) in [
            (r#"{"plugins":[]}"#, "empty"),
            (r"{}", "neither"),
            (r#"{"plugins":[{"name":"x"}]}"#, "no \"type\""),
            (r#"{"type":"../evil"}"#, "is a path"),
            (r#"{"type":"a","name":"a b"}"#, "invalid characters"),
        ] {
            assert!(matches!(list(text), Err(Error::Config(message)) if message.contains(part)), "{text}");
        }
    }

    #[test]
    fn a_list_survives_its_text() {
        let before =
            list(r#"{"cniVersion":"1.0.0","disableCheck":"true","plugins":[{"type":"a","n":1.0},{"type":"b"}]}"#);
        let before = before.unwrap();
        assert!(before.disable_check);
        assert_eq!(list(&before.to_text()).unwrap(), before);
    }

    #[test]
    fn a_meta_plugin_is_found_at_any_depth() {
        let deep = Object::parse("t", br#"{"type":"x","delegates":[{"plugins":[{"type":"multus-shim"}]}]}"#).unwrap();
        assert_eq!(names_meta_plugin(&deep).as_deref(), Some("multus-shim"));
        let flat = Object::parse("t", br#"{"type":"x","ipam":{"type":"host-local"}}"#).unwrap();
        assert_eq!(names_meta_plugin(&flat), None);
    }

    #[test]
    fn files_of_the_sub_directory_are_chained() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("10-main.conflist");
        std::fs::write(&path, r#"{"cniVersion":"0.4.0","name":"cbr0","plugins":[{"type":"flannel"}]}"#).unwrap();
        std::fs::create_dir(dir.path().join("cbr0")).unwrap();
        std::fs::write(dir.path().join("cbr0/b.conf"), r#"{"type":"second"}"#).unwrap();
        std::fs::write(dir.path().join("cbr0/a.conf"), r#"{"type":"first"}"#).unwrap();
        std::fs::write(dir.path().join("cbr0/c.json"), r#"{"type":"no"}"#).unwrap();
        assert_eq!(PluginList::from_file(&path).unwrap().kinds(), "flannel, first, second");
        std::fs::write(&path, r#"{"name":"cbr0","loadOnlyInlinedPlugins":true,"plugins":[{"type":"flannel"}]}"#)
            .unwrap();
        assert_eq!(PluginList::find(dir.path(), "cbr0").unwrap().kinds(), "flannel");
        assert!(
            matches!(PluginList::find(dir.path(), "other"), Err(Error::Refused { missing: true, source, .. }) if matches!(&*source, Error::Config(text) if text.contains("\"other\"")))
        );
    }
}
