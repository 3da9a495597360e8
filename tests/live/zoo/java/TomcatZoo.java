import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import org.apache.catalina.Context;
import org.apache.catalina.connector.Connector;
import org.apache.catalina.startup.Tomcat;

/** A servlet in an embedded Tomcat.  TomcatZoo PORT DIRECTORY */
public final class TomcatZoo {
    static final class Zoo extends HttpServlet {
        private static void answer(HttpServletResponse response, int status, byte[] body) throws IOException {
            response.setStatus(status);
            response.setContentLength(body.length);
            response.getOutputStream().write(body);
        }

        @Override
        protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException {
            String[] parts = request.getRequestURI().split("/");
            byte[] body = request.getInputStream().readAllBytes();
            try {
                switch (parts.length > 1 ? parts[1] : "") {
                    case "items" -> answer(response, 200, ("{\"item\":\"" + parts[2] + "\"}\n").getBytes(StandardCharsets.UTF_8));
                    case "fail" -> answer(response, 500, "failed\n".getBytes(StandardCharsets.UTF_8));
                    case "echo" -> answer(response, 200, body);
                    case "sleep" -> {
                        Thread.sleep(Long.parseLong(parts[2]));
                        answer(response, 200, "slept\n".getBytes(StandardCharsets.UTF_8));
                    }
                    case "big" -> answer(response, 200, "x".repeat(Integer.parseInt(parts[2])).getBytes(StandardCharsets.UTF_8));
                    case "stream" -> {
                        for (int piece = 0; piece < 5; piece++) {
                            response.getOutputStream().print("piece " + piece + "\n");
                            response.flushBuffer();
                            Thread.sleep(1);
                        }
                    }
                    default -> answer(response, 404, "no such page\n".getBytes(StandardCharsets.UTF_8));
                }
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(arguments[1]);
        Connector connector = new Connector();
        connector.setPort(Integer.parseInt(arguments[0]));
        connector.setProperty("address", "127.0.0.1");
        connector.setProperty("maxThreads", "16");
        connector.setProperty("maxKeepAliveRequests", "-1");
        tomcat.setConnector(connector);
        Context context = tomcat.addContext("", null);
        Tomcat.addServlet(context, "zoo", new Zoo());
        context.addServletMappingDecoded("/*", "zoo");
        tomcat.start();
        System.out.println("listening " + connector.getLocalPort());
        tomcat.getServer().await();
    }
}
