// Java's own path validation (RFC 5280, the JDK's PKIX CertPathValidator) as a relying party.
//
// Standard input has one question a line, its parts separated by tabs:
//   time in seconds of the epoch, what tells the status ("none", "crls" or the URL of an OCSP responder),
//   trust anchor, path from the leaf up with commas, CRLs with commas; all DER in base64
// Standard output has one answer a line: verdict, reason, message, separated by tabs.
// Only the leaf's status is asked for, and nothing but what was handed in tells it.

import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.security.cert.CRL;
import java.security.cert.CertPath;
import java.security.cert.CertPathValidator;
import java.security.cert.CertPathValidatorException;
import java.security.cert.CertPathValidatorException.BasicReason;
import java.security.cert.CertStore;
import java.security.cert.CertificateFactory;
import java.security.cert.CertificateRevokedException;
import java.security.cert.CollectionCertStoreParameters;
import java.security.cert.PKIXParameters;
import java.security.cert.PKIXRevocationChecker;
import java.security.cert.PKIXRevocationChecker.Option;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Date;
import java.util.EnumSet;
import java.util.List;
import java.util.Set;

public final class PathStatus {
    public static void main(String[] arguments) throws Exception {
        BufferedReader questions = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = questions.readLine()) != null; ) {
            System.out.println(String.join("\t", answer(line.split("\t", -1))));
            System.out.flush();
        }
    }

    private static String[] answer(String[] question) throws Exception {
        CertificateFactory factory = CertificateFactory.getInstance("X.509");
        TrustAnchor anchor = new TrustAnchor(certificate(factory, question[2]), null);
        List<X509Certificate> path = new ArrayList<>();
        for (String text : question[3].split(",")) {
            path.add(certificate(factory, text));
        }
        CertPath whole = factory.generateCertPath(path);
        PKIXParameters parameters = new PKIXParameters(Set.of(anchor));
        parameters.setDate(new Date(Long.parseLong(question[0]) * 1000));
        parameters.setRevocationEnabled(false);
        CertPathValidator validator = CertPathValidator.getInstance("PKIX");
        try {
            validator.validate(whole, parameters);
        } catch (CertPathValidatorException refusal) {
            return new String[] {"refused", "", refusal.getReason() + ": " + message(refusal)};
        }
        if (question[1].equals("none")) {
            return new String[] {"good", "", ""};
        }
        PKIXRevocationChecker checker = (PKIXRevocationChecker) validator.getRevocationChecker();
        EnumSet<Option> options = EnumSet.of(Option.ONLY_END_ENTITY, Option.NO_FALLBACK);
        if (question[1].equals("crls")) {
            options.add(Option.PREFER_CRLS);
            List<CRL> crls = new ArrayList<>();
            for (String text : question[4].split(",")) {
                if (!text.isEmpty()) {
                    crls.add(factory.generateCRL(octets(text)));
                }
            }
            parameters.addCertStore(
                CertStore.getInstance("Collection", new CollectionCertStoreParameters(crls)));
        } else {
            checker.setOcspResponder(new URI(question[1]));
        }
        checker.setOptions(options);
        parameters.addCertPathChecker(checker);
        try {
            validator.validate(whole, parameters);
            return new String[] {"good", "", ""};
        } catch (CertPathValidatorException refusal) {
            return status(refusal);
        }
    }

    // The path is good without the question, so whatever is said here is about the status.
    private static String[] status(CertPathValidatorException refusal) {
        if (refusal.getReason() == BasicReason.REVOKED) {
            boolean told = refusal.getCause() instanceof CertificateRevokedException;
            String reason = told
                ? ((CertificateRevokedException) refusal.getCause()).getRevocationReason().name()
                : "";
            return new String[] {"revoked", reason, message(refusal)};
        }
        // This answer of a responder has a sentence of its own and no reason of its own.
        boolean unknown = message(refusal).contains("revocation status is unknown");
        return new String[] {unknown ? "unknown" : "undetermined", "", message(refusal)};
    }

    private static String message(CertPathValidatorException refusal) {
        return String.valueOf(refusal.getMessage()).replaceAll("\\s+", " ");
    }

    private static X509Certificate certificate(CertificateFactory factory, String text) throws Exception {
        return (X509Certificate) factory.generateCertificate(octets(text));
    }

    private static ByteArrayInputStream octets(String text) {
        return new ByteArrayInputStream(Base64.getDecoder().decode(text));
    }
}
