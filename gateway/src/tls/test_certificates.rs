//! Certificates for tests, made by the program openssl.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::settings::TlsSettings;

/// A folder with an authority, `ca.pem`, and a certificate of it for localhost, `server.pem` and `server.key`.
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("gateway-tls-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        let certificates = Self { folder };
        certificates.make("ca", "/CN=authority", "basicConstraints=critical,CA:TRUE", &["-days", "2"]);
        certificates.issue("server", "/CN=localhost");
        certificates
    }

    /// Makes NAME.pem and NAME.key for this subject. Names of servers are those of this machine.
    pub fn issue(&self, name: &str, subject: &str) {
        self.issue_for(name, subject, 2);
    }

    /// As `issue`, valid for so many days.
    pub fn issue_for(&self, name: &str, subject: &str, days: u32) {
        let (ca, key) = (self.path("ca.pem"), self.path("ca.key"));
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
        let authority = ["-CA", ca.to_str().unwrap(), "-CAkey", key.to_str().unwrap(), "-addext"];
        let days = days.to_string();
        let more = ["basicConstraints=critical,CA:FALSE", "-days", &days];
        self.make(name, subject, names, &[&authority[..], &more].concat());
    }

    /// As `issue`, by an authority of its own, which is returned.
    pub fn issue_by_another(&self, name: &str, subject: &str) -> Self {
        let others = Self::new();
        others.issue(name, subject);
        for file in [format!("{name}.pem"), format!("{name}.key")] {
            fs::copy(others.path(&file), self.path(&file)).unwrap();
        }
        others
    }

    fn make(&self, name: &str, subject: &str, extension: &str, more: &[&str]) {
        let output = Command::new("openssl")
            .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj".split(' '))
            .args([subject, "-addext", extension])
            .args(more)
            .args([Path::new("-keyout"), &self.path(&format!("{name}.key"))])
            .args([Path::new("-out"), &self.path(&format!("{name}.pem"))])
            .output()
            .expect("the program openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The settings with `server.pem` and `server.key`, and with the authority for clients.
    pub fn settings(&self, client_ca: bool) -> TlsSettings {
        TlsSettings {
            certificate: self.path("server.pem"),
            private_key: self.path("server.key"),
            client_ca: client_ca.then(|| self.path("ca.pem")),
        }
    }

    /// Writes a file over another one.
    pub fn replace(&self, name: &str, by: &str) {
        fs::copy(self.path(by), self.path(name)).unwrap();
    }

    pub fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
