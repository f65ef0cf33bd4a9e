//! Which certificates are good, and new ones for those that are not. Pure but for the keys, which are random.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::{Pem, parse_x509_pem};

use crate::certificates::{Owner, authority_params, leaf_params};

/// The name of authorities that this program makes, and the only one that it goes on with.
const AUTHORITY_NAME: &str = "rds-csi authority";
const DAY: Duration = Duration::from_secs(86_400);
/// How long an authority holds.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3_650 * DAY.as_secs());
/// How long what it signs holds.
const LEAF_LIFE: Duration = Duration::from_secs(365 * DAY.as_secs());
/// How far the clocks of two machines may be apart: certificates hold since so long before they were made.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// What is renewed: what has less than this part of its life left.
const RENEWED_IN_LAST_PART: i64 = 3;
/// The end of one certificate in a PEM text.
const PEM_END: &str = "-----END CERTIFICATE-----";

/// What a Secret holds, in PEM. It has no `Debug`: there is a key in it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Material {
    pub(super) certificates: String,
    pub(super) key: String,
    /// Whom the holder believes.
    pub(super) authorities: String,
}

/// Whether a Secret's content is good as it is, and if not, why it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Missing,
    /// A reason to make a new certificate.
    Unfit(String),
    /// The certificate is good; whom its holder is to believe has changed.
    OtherAuthorities,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good => f.write_str("it was good"),
            Self::Missing => f.write_str("there was none"),
            Self::Unfit(why) => f.write_str(why),
            Self::OtherAuthorities => f.write_str("the authorities had changed"),
        }
    }
}

/// A certificate that is wanted.
pub(super) struct Wanted {
    pub(super) owner: Owner,
    pub(super) dns: Vec<String>,
}

/// An authority that can sign.
pub(super) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    /// Its certificate, and then those of others who are still believed.
    bundle: String,
}

impl Authority {
    /// A new one.
    pub(super) fn create(now: SystemTime) -> anyhow::Result<Self> {
        Self::with_key(KeyPair::generate()?, now)
    }

    fn with_key(key: KeyPair, now: SystemTime) -> anyhow::Result<Self> {
        let params = valid(authority_params(AUTHORITY_NAME), now, AUTHORITY_LIFE);
        let bundle = params.self_signed(&key)?.pem();
        Ok(Self { params, key, bundle })
    }

    /// The one that is stored, or the same with a new certificate if that is in the last part of its life: its key stays,
    /// so what it signed stays good, and the old certificate goes on vouching for what the new one signs.
    pub(super) fn open(stored: &Material, now: SystemTime) -> anyhow::Result<(Self, Verdict)> {
        let pem = first(&stored.certificates).context("tls.crt")?;
        let certificate = pem.parse_x509().context("tls.crt")?;
        // rcgen's error could quote what it was given.
        let key =
            KeyPair::from_pem(&stored.key).map_err(|_| anyhow::anyhow!("tls.key is not a key in PEM"))?;
        ensure!(is_key_of(&key, &certificate), "tls.key is not the key of tls.crt");
        ensure!(certificate.is_ca(), "tls.crt is not an authority's");
        let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        ensure!(name == Some(AUTHORITY_NAME), "tls.crt is of {name:?}, not of {AUTHORITY_NAME:?}");
        let (authority, verdict) = match worn(&certificate, now) {
            Some(why) => {
                let mut renewed = Self::with_key(key, now)?;
                renewed.bundle += &believed_beside(&stored.certificates, &renewed.key, now);
                (renewed, Verdict::Unfit(why))
            }
            None => {
                let params = authority_params(AUTHORITY_NAME);
                (Self { params, key, bundle: stored.certificates.clone() }, Verdict::Good)
            }
        };
        let told = verdict != Verdict::Good || stored.authorities == authority.bundle;
        Ok((authority, if told { verdict } else { Verdict::OtherAuthorities }))
    }

    /// Its certificate, and those of others who are still believed.
    pub(super) fn bundle(&self) -> &str {
        &self.bundle
    }

    /// What its Secret holds.
    pub(super) fn material(&self) -> Material {
        Material {
            certificates: self.bundle.clone(),
            key: self.key.serialize_pem(),
            authorities: self.bundle.clone(),
        }
    }

    /// The certificate that is wanted: what is stored if that is good, else a new one with a new key.
    pub(super) fn leaf(
        &self,
        wanted: &Wanted,
        stored: Option<&Material>,
        now: SystemTime,
    ) -> anyhow::Result<(Material, Verdict)> {
        let verdict = match stored {
            None => Verdict::Missing,
            Some(stored) => match self.judge(wanted, stored, now) {
                Ok(()) if stored.authorities == self.bundle => Verdict::Good,
                Ok(()) => Verdict::OtherAuthorities,
                Err(why) => Verdict::Unfit(format!("{why:#}")),
            },
        };
        let material = match (&verdict, stored) {
            (Verdict::Good | Verdict::OtherAuthorities, Some(stored)) => {
                Material { authorities: self.bundle.clone(), ..stored.clone() }
            }
            (Verdict::Good | Verdict::OtherAuthorities | Verdict::Missing | Verdict::Unfit(_), _) => {
                self.sign(wanted, now)?
            }
        };
        Ok((material, verdict))
    }

    fn sign(&self, wanted: &Wanted, now: SystemTime) -> anyhow::Result<Material> {
        let dns = wanted.dns.iter().map(|name| Ok(SanType::DnsName(name.as_str().try_into()?)));
        let names = dns.collect::<Result<Vec<_>, rcgen::Error>>()?;
        let params = valid(leaf_params(&wanted.owner, names)?, now, LEAF_LIFE);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?;
        Ok(Material {
            certificates: certificate.pem(),
            key: key.serialize_pem(),
            authorities: self.bundle.clone(),
        })
    }

    /// Whether what is stored is what is wanted, signed by this authority, and holds long enough.
    fn judge(&self, wanted: &Wanted, stored: &Material, now: SystemTime) -> anyhow::Result<()> {
        let pem = first(&stored.certificates).context("its certificate")?;
        let certificate = pem.parse_x509().context("its certificate")?;
        let key = KeyPair::from_pem(&stored.key).map_err(|_| anyhow::anyhow!("its key is none in PEM"))?;
        ensure!(is_key_of(&key, &certificate), "its key is not that of its certificate");
        let own = first(&self.bundle)?;
        let own = own.parse_x509()?;
        ensure!(signer(&certificate) == subject_key(&own), "it was signed by another authority");
        let mut names = wanted.dns.iter().map(|name| format!("DNS {name}")).collect::<Vec<_>>();
        names.push(format!("URI {}", wanted.owner.uri()));
        names.sort();
        ensure!(names_in(&certificate) == names, "it was for other names");
        match worn(&certificate, now) {
            Some(why) => bail!(why),
            None => Ok(()),
        }
    }
}

/// Until when the first of these certificates holds, for people.
pub(super) fn holds_until(certificates: &str) -> anyhow::Result<String> {
    let pem = first(certificates)?;
    Ok(pem.parse_x509()?.validity().not_after.to_string())
}

fn valid(mut params: CertificateParams, now: SystemTime, life: Duration) -> CertificateParams {
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life).into();
    params
}

/// Why a certificate has to be renewed, if it does.
fn worn(certificate: &X509Certificate<'_>, now: SystemTime) -> Option<String> {
    let (begin, end) =
        (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    let left = end - seconds(now);
    let life = end - begin;
    (left < life / RENEWED_IN_LAST_PART).then(|| format!("it held for {} days more", left / seconds_of(DAY)))
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map(seconds_of).unwrap_or_default()
}

fn seconds_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn first(certificates: &str) -> anyhow::Result<Pem> {
    let (_, pem) = parse_x509_pem(certificates.as_bytes()).context("it is not a certificate in PEM")?;
    Ok(pem)
}

fn is_key_of(key: &KeyPair, certificate: &X509Certificate<'_>) -> bool {
    key.public_key_raw() == &*certificate.public_key().subject_public_key.data
}

/// The certificates in a bundle that still hold and are not of this key.
fn believed_beside(bundle: &str, key: &KeyPair, now: SystemTime) -> String {
    let others = bundle.split_inclusive(PEM_END).filter(|text| {
        let Ok(pem) = first(text) else { return false };
        pem.parse_x509().is_ok_and(|certificate| {
            !is_key_of(key, &certificate) && certificate.validity().not_after.timestamp() > seconds(now)
        })
    });
    others.map(|text| format!("{}\n", text.trim())).collect()
}

fn names_in(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let mut found: Vec<String> = names
        .map(|name| match name {
            GeneralName::DNSName(dns) => format!("DNS {dns}"),
            GeneralName::URI(uri) => format!("URI {uri}"),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => format!("{name:?}"),
        })
        .collect();
    found.sort();
    found
}

/// Which key signed a certificate, as it says itself.
fn signer(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| {
        let ParsedExtension::AuthorityKeyIdentifier(signer) = extension.parsed_extension() else {
            return None;
        };
        Some(signer.key_identifier.as_ref()?.0.to_vec())
    })
}

fn subject_key(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| {
        let ParsedExtension::SubjectKeyIdentifier(key) = extension.parsed_extension() else { return None };
        Some(key.0.to_vec())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, UnixTime};
    use rustls::server::WebPkiClientVerifier;

    use super::*;

    fn controllers(dns: &[&str]) -> Wanted {
        let dns = dns.iter().map(|name| (*name).to_owned()).collect();
        Wanted { owner: Owner::Replica("rds-csi-controller".to_owned()), dns }
    }

    /// Whether who believes these authorities accepts the certificate at that time.
    fn is_accepted(certificate: &str, authorities: &str, at: SystemTime) -> bool {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
            roots.add(authority.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap());
        verifier.verify_client_cert(&certificate, &[], at).is_ok()
    }

    #[test]
    fn what_is_good_is_kept_and_what_is_worn_is_renewed() {
        let now = SystemTime::now();
        let authority = Authority::create(now).unwrap();
        let wanted = controllers(&["rds-csi", "rds-csi.storage.svc"]);
        let (made, verdict) = authority.leaf(&wanted, None, now).unwrap();
        assert_eq!(verdict, Verdict::Missing);
        assert!(is_accepted(&made.certificates, &made.authorities, now));
        assert!(!is_accepted(&made.certificates, &made.authorities, now + LEAF_LIFE + DAY));

        for days in [0, 240] {
            let (kept, verdict) = authority.leaf(&wanted, Some(&made), now + days * DAY).unwrap();
            assert!(verdict == Verdict::Good && kept == made, "after {days} days: {verdict}");
        }
        let (renewed, verdict) = authority.leaf(&wanted, Some(&made), now + 250 * DAY).unwrap();
        assert_eq!(verdict, Verdict::Unfit("it held for 115 days more".to_owned()));
        assert!(
            renewed.key != made.key
                && is_accepted(&renewed.certificates, authority.bundle(), now + 600 * DAY)
        );
    }

    #[test]
    fn what_does_not_fit_is_made_anew() {
        let now = SystemTime::now();
        let authority = Authority::create(now).unwrap();
        let wanted = controllers(&["rds-csi"]);
        let (good, _) = authority.leaf(&wanted, None, now).unwrap();
        let (foreign, _) = Authority::create(now).unwrap().leaf(&wanted, None, now).unwrap();
        let (other_key, _) = authority.leaf(&wanted, None, now).unwrap();
        let (other_names, _) = authority.leaf(&controllers(&["rds-csi", "b"]), None, now).unwrap();
        for (stored, why) in [
            (Material { certificates: String::new(), ..good.clone() }, "its certificate"),
            (Material { key: String::new(), ..good.clone() }, "its key is none"),
            (Material { key: other_key.key, ..good.clone() }, "its key is not that"),
            (foreign, "another authority"),
            (other_names, "other names"),
        ] {
            let (made, verdict) = authority.leaf(&wanted, Some(&stored), now).unwrap();
            let Verdict::Unfit(said) = &verdict else { panic!("{verdict:?}") };
            assert!(said.contains(why), "{said}");
            assert!(is_accepted(&made.certificates, authority.bundle(), now));
            assert!(made.certificates != stored.certificates);
        }
        let told_others = Material { authorities: "x".to_owned(), ..good.clone() };
        let (told, verdict) = authority.leaf(&wanted, Some(&told_others), now).unwrap();
        assert!(verdict == Verdict::OtherAuthorities && told == good, "the certificate stays: {verdict}");
    }

    #[test]
    fn a_renewed_authority_and_the_old_one_vouch_for_the_same() {
        let now = SystemTime::now();
        let first = Authority::create(now).unwrap();
        let other = Authority::create(now).unwrap();
        let wanted = controllers(&["rds-csi"]);
        let (early, _) = first.leaf(&wanted, None, now + 2_600 * DAY).unwrap();
        // Somebody else is believed beside it.
        let mut stored = first.material();
        stored.certificates += other.bundle();
        stored.authorities = stored.certificates.clone();
        let (kept, verdict) = Authority::open(&stored, now + 2_400 * DAY).unwrap();
        assert!(verdict == Verdict::Good && kept.material() == stored, "{verdict}");

        let late = now + 2_610 * DAY;
        let (renewed, verdict) = Authority::open(&stored, late).unwrap();
        assert!(matches!(verdict, Verdict::Unfit(_)), "{verdict}");
        assert!(renewed.bundle() != first.bundle() && renewed.bundle().contains(other.bundle().trim()));
        let (signed, _) = renewed.leaf(&wanted, None, late).unwrap();
        for certificate in [&early.certificates, &signed.certificates] {
            assert!(is_accepted(certificate, first.bundle(), late));
            assert!(is_accepted(certificate, renewed.bundle(), late));
        }
    }

    #[test]
    fn an_authority_that_cannot_be_used_is_an_error_and_no_key_is_in_it() {
        let now = SystemTime::now();
        let good = Authority::create(now).unwrap().material();
        let other = Authority::create(now).unwrap().material();
        let (leaf, _) = Authority::create(now).unwrap().leaf(&controllers(&["a"]), None, now).unwrap();
        for (stored, why) in [
            (Material { certificates: "x".to_owned(), ..good.clone() }, "tls.crt"),
            (Material { key: format!("x{}", good.key), ..other.clone() }, "tls.key"),
            (Material { key: other.key, ..good.clone() }, "tls.key is not the key"),
            (leaf, "not an authority's"),
        ] {
            let error = format!("{:#}", Authority::open(&stored, now).err().unwrap());
            assert!(error.contains(why), "{error}");
            let secret = stored.key.lines().nth(1).unwrap();
            assert!(!error.contains(secret));
        }
    }
}
