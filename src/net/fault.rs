//! Why a TLS connection failed, in the words of a person and in one word for metrics.
//!
//! A caller learns of some refusals only after its own half of the handshake is done, as an alert
//! inside a broken connection; therefore errors are searched to their last cause.

use std::{error::Error as StdError, io};

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why a TLS connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller speaks plaintext, or something else that is not TLS.
    Plaintext,
    /// The caller speaks TLS and this side does not.
    Tls,
    /// The other side does not speak TLS.
    NotTls,
    /// This side speaks plaintext and the other one demands TLS.
    TlsDemanded,
    /// No certificate was shown where one is demanded.
    NoCertificate,
    /// The other side's certificate is signed by nobody that is trusted here.
    UnknownCa,
    /// The other side's certificate has expired.
    Expired,
    /// The other side's certificate is not valid yet.
    NotYetValid,
    /// The other side's certificate is for another name than the one it was reached by.
    WrongName,
    /// The other side's certificate is not for this purpose, damaged or of an unknown kind.
    BadCertificate,
    /// The other side demands a certificate that it was not shown.
    CertificateDemanded,
    /// The other side does not trust this side's certificate.
    Distrusted,
    /// The other side says that this side's certificate has expired.
    OwnExpired,
    /// The handshake, or the first bytes after it, did not come in time.
    TooSlow,
    /// The connection ended within the handshake.
    Closed,
    /// The two sides have no protocol in common, or one of them is faulty.
    Protocol,
}

impl Fault {
    /// One word for metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Tls => "tls",
            Self::NotTls => "not_tls",
            Self::TlsDemanded => "tls_demanded",
            Self::NoCertificate => "no_certificate",
            Self::UnknownCa => "unknown_ca",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongName => "wrong_name",
            Self::BadCertificate => "bad_certificate",
            Self::CertificateDemanded => "certificate_demanded",
            Self::Distrusted => "distrusted",
            Self::OwnExpired => "own_expired",
            Self::TooSlow => "too_slow",
            Self::Closed => "closed",
            Self::Protocol => "protocol",
        }
    }

    /// What a caller should be told.
    #[must_use]
    pub const fn told(self) -> &'static str {
        match self {
            Self::Plaintext => "the caller does not speak TLS",
            Self::Tls => "the caller speaks TLS and this listener does not",
            Self::NotTls => "the node does not speak TLS",
            Self::TlsDemanded => "the node demands TLS",
            Self::NoCertificate => "no certificate was shown",
            Self::UnknownCa => "its certificate is not signed by a CA that is trusted here",
            Self::Expired => "its certificate has expired",
            Self::NotYetValid => "its certificate is not valid yet",
            Self::WrongName => "its certificate is for another name or address",
            Self::BadCertificate => "its certificate cannot be accepted",
            Self::CertificateDemanded => "the node demands a client certificate",
            Self::Distrusted => "the other side does not trust the certificate it was shown",
            Self::OwnExpired => "the other side finds the certificate it was shown expired",
            Self::TooSlow => "the handshake was not done in time",
            Self::Closed => "the connection was closed within the TLS handshake",
            Self::Protocol => "there is no TLS version or protocol in common",
        }
    }

    /// Whether trying again is in vain until somebody changes a setting or a certificate.
    #[must_use]
    pub const fn stays(self) -> bool {
        !matches!(self, Self::TooSlow | Self::Closed)
    }

    /// The fault behind a handshake's error.
    #[must_use]
    pub(crate) fn of_handshake(error: &io::Error, accepting: bool) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::of_tls(error, accepting),
            None => Self::Closed,
        }
    }

    /// The fault behind any error of a connection that was dialled; `None` where TLS has no part
    /// in it.
    #[must_use]
    pub fn behind(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(dialled) = error.downcast_ref::<super::dial::DialError>() {
                return Some(dialled.fault);
            }
            if let Some(tls) = error.downcast_ref::<Error>() {
                return Some(Self::of_tls(tls, false));
            }
            if let Some(h2) = error.downcast_ref::<h2::Error>()
                && h2.reason() == Some(h2::Reason::INADEQUATE_SECURITY)
            {
                return Some(Self::TlsDemanded);
            }
            if let Some(fault) = Self::of_alert_text(&error.to_string()) {
                return Some(fault);
            }
            cause = error.source();
        }
        None
    }

    fn of_tls(error: &Error, accepting: bool) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::InvalidMessage(InvalidMessage::InvalidContentType) if accepting => {
                Self::Plaintext
            }
            Error::InvalidMessage(_) if !accepting => Self::NotTls,
            Error::AlertReceived(alert) => Self::of_alert(*alert),
            _ => Self::Protocol,
        }
    }

    const fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            // A CA of the same name with another key shows as a wrong signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownCa,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName
            }
            _ => Self::BadCertificate,
        }
    }

    const fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
                Self::CertificateDemanded
            }
            AlertDescription::CertificateExpired => Self::OwnExpired,
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::DecryptError
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied => Self::Distrusted,
            _ => Self::Protocol,
        }
    }

    /// h2 keeps only the text of an error that broke a connection. Such an alert may come long
    /// after the handshake, so none counts but those about a certificate: of them alone it is
    /// certain that no request was served. What else ends a handshake comes with its type.
    fn of_alert_text(text: &str) -> Option<Self> {
        let (_, name) = text.split_once("received fatal alert: ")?;
        let alerts = [
            AlertDescription::CertificateRequired,
            AlertDescription::NoCertificate,
            AlertDescription::CertificateExpired,
            AlertDescription::UnknownCA,
            AlertDescription::BadCertificate,
            AlertDescription::DecryptError,
            AlertDescription::CertificateUnknown,
            AlertDescription::UnsupportedCertificate,
            AlertDescription::AccessDenied,
        ];
        let word = name.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let alert = alerts.into_iter().find(|alert| format!("{alert:?}") == word);
        alert.map(Self::of_alert)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_known_by_its_type_and_by_its_text_alone() {
        let error = Error::AlertReceived(AlertDescription::CertificateRequired);
        assert_eq!(Fault::behind(&error), Some(Fault::CertificateDemanded));
        let error = Error::AlertReceived(AlertDescription::ProtocolVersion);
        assert_eq!(Fault::behind(&error), Some(Fault::Protocol));
        for (alert, fault) in [
            (AlertDescription::CertificateRequired, Some(Fault::CertificateDemanded)),
            (AlertDescription::CertificateExpired, Some(Fault::OwnExpired)),
            (AlertDescription::UnknownCA, Some(Fault::Distrusted)),
            // These may break a connection that carried requests.
            (AlertDescription::BadRecordMac, None),
            (AlertDescription::InternalError, None),
        ] {
            let text = Error::AlertReceived(alert).to_string();
            let broken = io::Error::other(format!("connection error: {text}"));
            assert_eq!(Fault::behind(&broken), fault, "{text}");
        }
        assert_eq!(Fault::behind(&io::Error::other("broken pipe")), None);
    }
}
